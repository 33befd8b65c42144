"""Texts become tokens and the same texts again."""

import random

import pytest
from pydantic import TypeAdapter

from bbnet.tasks.asr.data.tokens import CharacterTokeniser, PieceTokeniser, load_tokeniser, normalise, train_tokeniser
from bbnet.tasks.asr.settings import Tokens

TRAINING = [
    "THE HORSE AND THE HARBOR",
    "IT'S THE HORSES' HARBOR",
    "",
    "A MOUNTAIN AND ANOTHER MOUNTAIN OVER THE RIVER",
    "RUNNING RUNNER RAN OVER THE OTHER",
    "BUTTER SUGAR PEPPER WATER AND LETTERS MATTER LITTLE IN THE KITTEN'S KITCHEN",
    "WINTER SUMMER MARKET WINDOW VILLAGE GARDEN FOREST SILVER GOLDEN CAPTAIN SOLDIER DINNER",
    "EVERY OTHER ENGINE BRIDGES ISLANDS DESERTS THUNDER LIGHTNING SHADOWS WHISPERING ADVENTURES",
] * 3
UNSEEN = ["ZYXWVUTSRQPONMLKJIHGFEDCBA", "QUIZ JAZZ", "'", "''", "' '", "'TIS O'CLOCK'", "A", "", "Z Z Z", "X" * 300]
KINDS = [{"kind": "characters"}, *({"kind": kind, "size": size} for kind in ("unigram", "bpe") for size in (32, 50))]


@pytest.fixture(params=KINDS, ids=lambda tokens: "-".join(map(str, tokens.values())))
def tokeniser(request, tmp_path):
    return train_tokeniser(TypeAdapter(Tokens).validate_python(request.param), TRAINING, tmp_path)


def random_texts(count: int) -> list[str]:
    draw = random.Random(5)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
    counts = [draw.randint(0, 9) for _ in range(count)]
    return [" ".join("".join(draw.choices(letters, k=draw.randint(1, 12))) for _ in range(own)) for own in counts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello", "HELLO"),
        ("  A  b\tc\n", "A B C"),
        ("it's", "IT'S"),
        ("don\u2019t", "DON'T"),
        ("DON\u02bcT", "DON'T"),
        ("don\uff07t", "DON'T"),
        ("the horses\u2019, it\u2019s", "THE HORSES' IT'S"),
        ("twenty-one, 21!", "TWENTY ONE"),
        ("caf\u00e9 noir", "CAF NOIR"),
        ("", ""),
        (" .,;- ", ""),
        ("A\u00a0B", "A B"),
        ("under_score", "UNDER SCORE"),
        ("\u2581A</s><pad><unk>", "A S PAD UNK"),
        ("'", "'"),
    ],
)
def test_texts_are_normalised_to_capitals_apostrophes_and_single_spaces(text, expected):
    assert normalise(text) == expected
    assert normalise(expected) == expected


def test_whatever_the_text_only_the_alphabet_is_left():
    everything = "".join(chr(code) for code in range(0x3000))
    assert set(normalise(everything)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ' ")
    assert "  " not in normalise(everything)


def test_decoding_gives_the_text_back_also_of_words_never_seen(tokeniser):
    for text in [*TRAINING, *UNSEEN, *random_texts(200)]:
        assert tokeniser.decode(tokeniser.encode(text)) == text


def test_padding_and_end_are_never_in_a_text(tokeniser):
    found = {token for text in [*TRAINING, *UNSEEN, *random_texts(200)] for token in tokeniser.encode(text)}
    assert min(found) >= 2
    assert max(found) < tokeniser.size


def test_an_empty_text_has_no_tokens(tokeniser):
    assert list(tokeniser.encode("")) == []
    assert tokeniser.decode([]) == ""


def test_every_token_can_be_decoded(tokeniser):
    """A model may write any of them, in any order."""
    for token in range(2, tokeniser.size):
        assert set(normalise(tokeniser.decode([token, token]))) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ' ")
    assert isinstance(tokeniser.decode(list(range(2, tokeniser.size))), str)


def test_characters_are_28_and_two_special_ones():
    tokeniser = CharacterTokeniser()
    assert tokeniser.size == 30
    assert len(set(tokeniser.encode("ABCDEFGHIJKLMNOPQRSTUVWXYZ' "))) == 28
    assert len(tokeniser.encode("IT'S A")) == 6


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("size", [32, 45, 60])
def test_pieces_are_as_many_as_asked_for_and_loaded_again(tmp_path, kind, size):
    trained = train_tokeniser(TypeAdapter(Tokens).validate_python({"kind": kind, "size": size}), TRAINING, tmp_path)
    loaded = load_tokeniser(tmp_path, {"tokens": {"kind": kind, "size": size, "vocabulary": size}})
    assert trained.size == loaded.size == size
    assert [loaded.encode(text) for text in TRAINING] == [trained.encode(text) for text in TRAINING]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokeniser.model"]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_more_pieces_mean_fewer_tokens(tmp_path, kind):
    counts = []
    for size in (32, 60):
        tokens = TypeAdapter(Tokens).validate_python({"kind": kind, "size": size})
        tokeniser = train_tokeniser(tokens, TRAINING, tmp_path)
        counts.append(sum(len(tokeniser.encode(text)) for text in TRAINING))
    assert counts[1] < 0.8 * counts[0]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_equal_texts_give_equal_model_files(tmp_path, kind):
    tokens = TypeAdapter(Tokens).validate_python({"kind": kind, "size": 40})
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        train_tokeniser(tokens, TRAINING, tmp_path / name)
        files.append((tmp_path / name / "tokeniser.model").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_too_large_a_size_is_refused_in_one_line(tmp_path, kind):
    tokens = TypeAdapter(Tokens).validate_python({"kind": kind, "size": 5000})
    with pytest.raises(ValueError, match="5000") as refused:
        train_tokeniser(tokens, TRAINING, tmp_path)
    assert "\n" not in str(refused.value)
    assert kind in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_model_is_named(tmp_path):
    path = tmp_path / "tokeniser.model"
    with pytest.raises(ValueError, match=r"tokeniser\.model"):
        PieceTokeniser(path)
    path.write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"tokeniser\.model"):
        PieceTokeniser(path)


def test_the_training_text_alone_makes_the_pieces(write_corpus, prepare, noise):
    train = {f"1-1-{number:04d}": (noise(number, 70_000), text) for number, text in enumerate(TRAINING) if text}
    dev = {"2-1-0000": (noise(99, 80_000), "QUIZZICAL QUIZZES QUIZ QUIZMASTERS " * 5)}
    tokens = {"kind": "bpe", "size": 50}
    root = write_corpus({"train-clean-100": train, "dev-clean": dev})
    target, index = prepare(root, "one", tokens)
    first = [load_tokeniser(target, index).encode(text) for text in TRAINING]
    (root / "dev-clean" / "2" / "1" / "2-1.trans.txt").write_text("2-1-0000 NOTHING ALIKE\n")
    target, index = prepare(root, "two", tokens)
    assert [load_tokeniser(target, index).encode(text) for text in TRAINING] == first
    assert index["tokens"]["vocabulary"] == 50
