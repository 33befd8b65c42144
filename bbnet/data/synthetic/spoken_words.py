"""Generates a synthetic speech corpus in the layout of LibriSpeech: English words, spoken by espeak-ng, with noise.

espeak-ng comes from the espeakng-loader wheel, so no system package is needed. Equal parameters give equal files.
"""

import ctypes
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import espeakng_loader
import numpy as np
import soundfile
from scipy.signal import firwin, resample_poly

from bbnet.data.progress import track

SAMPLE_RATE = 16_000
LANGUAGES = ("en", "en-US", "en-GB-scotland", "en-GB-x-rp", "en-GB-x-gbclan", "en-US-nyc")
VARIANTS = ("m1", "m2", "m3", "m4", "m7", "f1", "f2", "f3", "f4", "f5")
WORDS_PER_MINUTE = (140, 185)
PITCH_OF_VARIANT = {"m": (25, 50), "f": (45, 65)}
LOUDNESS_DB = (-6.0, 0.0)
UTTERANCES_PER_CHAPTER = 25
FIRST_SPEAKER, FIRST_CHAPTER = 1001, 200_001

# In order of decreasing frequency in everyday English, so that Zipf's law makes common, short words most frequent.
WORDS = """
    the and that have with this from they say her she will one all would there their what out about
    who get which when make can like time just him know take people into year your good some could them see
    other than then now look only come over think also back after use two how our work first well way even
    new want because any these give day most man find here thing tell many those woman child world school
    great where hand part place week small night point home water room mother area money story month
    right study book eye job word business side kind head house service friend father power hour game line
    end member law car city name team minute idea body information back parent face level office door health
    person art war history party result change morning reason research girl guy moment air teacher force
    education foot boy age policy music table summer market window winter village garden river mountain forest
    animal horse bird finger letter paper color yellow purple silver golden doctor captain soldier kitchen dinner
    butter sugar apple orange potato candle mirror pocket basket ladder hammer needle button blanket pillow bottle
    engine railway bridge harbor island desert thunder lightning shadow whisper journey adventure treasure
    mystery courage freedom justice wisdom silence laughter sorrow holiday birthday wedding festival carnival
    elephant crocodile butterfly mosquito penguin dolphin octopus kangaroo umbrella telescope microscope
    volcano hurricane avalanche cathedral monastery pyramid labyrinth orchestra symphony violin trumpet
    philosopher astronomer blacksmith carpenter shepherd merchant emperor ambassador lieutenant passenger
    cinnamon chocolate marmalade cucumber mushroom strawberry vinegar porridge sandwich lemonade
    alphabet grammar dictionary calendar chronicle parchment manuscript encyclopedia
"""
LEXICON = tuple(dict.fromkeys(WORDS.split()))


@dataclass(frozen=True)
class Section:
    """One split of the corpus.

    Args:
        utterances, speakers: number of each. No speaker occurs in two splits.
        noise_db: range of the signal-to-noise ratio in dB.
        unseen: share of the words that are drawn from those that do not occur in training.
    """

    utterances: int
    speakers: int
    noise_db: tuple[float, float]
    unseen: float = 0.0


@dataclass(frozen=True)
class Speaker:
    """A speaker's name and the voice settings of the synthesiser."""

    name: str
    voice: str
    rate: int
    pitch: int


def write_spoken_words(
    target: Path,
    *,
    seed: int,
    sections: Mapping[str, Section],
    words: int,
    unseen_words: int,
    words_per_utterance: tuple[int, int],
    zipf: float,
) -> None:
    """Writes `{split}/{speaker}/{chapter}/{speaker}-{chapter}-{number}.flac` and a `.trans.txt` per chapter.

    Args:
        sections: contents of each split, by name.
        words: size of the training lexicon; the word of rank r is drawn with probability proportional to r^-zipf.
        unseen_words: number of further words, which occur only in splits whose share `unseen` is above 0.
        words_per_utterance: smallest and largest number of words, between which it is drawn uniformly.
    Raises: ValueError if there are too few words in the lexicon or too few voices.
    """
    if words + unseen_words > len(LEXICON):
        raise ValueError(f"words {words} and unseen_words {unseen_words}: the lexicon has only {len(LEXICON)} words")
    speakers = _speakers(seed, {split: section.speakers for split, section in sections.items()})
    probabilities = np.arange(1, words + 1) ** -zipf
    probabilities /= probabilities.sum()
    chapter = FIRST_CHAPTER
    for number, (split, section) in enumerate(sections.items()):
        draw = np.random.default_rng([seed, number])
        synthesiser = Synthesiser(seed)
        shares = np.array_split(np.arange(section.utterances), section.speakers)
        chapters = []
        for speaker, share in zip(speakers[split], shares, strict=True):
            for first in range(0, len(share), UTTERANCES_PER_CHAPTER):
                chapters.append((speaker, str(chapter), len(share[first : first + UTTERANCES_PER_CHAPTER])))
                chapter += 1
        for speaker, name, utterances in track(chapters, f"speak {split}", size=itemgetter(2)):
            folder = target / split / speaker.name / name
            folder.mkdir(parents=True)
            lines = []
            for utterance in range(utterances):
                count = draw.integers(words_per_utterance[0], words_per_utterance[1] + 1)
                spoken = draw.choice(words, size=count, p=probabilities)
                unseen = words + draw.integers(unseen_words, size=count) if unseen_words else spoken
                spoken = np.where(draw.random(count) < section.unseen, unseen, spoken)
                text = " ".join(LEXICON[word] for word in spoken)
                wave = _record(synthesiser.speak(text, speaker), section.noise_db, draw)
                key = f"{speaker.name}-{name}-{utterance:04d}"
                soundfile.write(folder / f"{key}.flac", wave, SAMPLE_RATE, subtype="PCM_16")
                lines.append(f"{key} {text.upper()}\n")
            (folder / f"{speaker.name}-{name}.trans.txt").write_text("".join(lines), encoding="utf-8")


def _speakers(seed: int, counts: Mapping[str, int]) -> dict[str, list[Speaker]]:
    """Draws the speakers of each split; every speaker has a different voice."""
    draw = np.random.default_rng([seed, 10**6])
    voices = [f"gmw/{language}+{variant}" for language in LANGUAGES for variant in VARIANTS]
    if sum(counts.values()) > len(voices):
        raise ValueError(f"{sum(counts.values())} speakers requested, but there are only {len(voices)} voices")
    order = iter(draw.permutation(len(voices)))
    made: dict[str, list[Speaker]] = {}
    name = FIRST_SPEAKER
    for split, count in counts.items():
        made[split] = []
        for _ in range(count):
            voice = voices[next(order)]
            rate = int(draw.integers(*WORDS_PER_MINUTE, endpoint=True))
            pitch = int(draw.integers(*PITCH_OF_VARIANT[voice.split("+")[1][0]], endpoint=True))
            made[split].append(Speaker(str(name), voice, rate, pitch))
            name += 1
    return made


def _record(wave: np.ndarray, noise_db: tuple[float, float], draw: np.random.Generator) -> np.ndarray:
    """Returns the wave at a random loudness with noise whose spectrum falls, as float [samples] in [-1, 1]."""
    spectrum = np.fft.rfft(draw.standard_normal(len(wave)))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)) / len(spectrum), 0.02))
    noise = np.fft.irfft(spectrum, len(wave))
    signal_to_noise = 10 ** (draw.uniform(*noise_db) / 10)
    noise *= np.sqrt(np.mean(wave**2) / signal_to_noise / np.mean(noise**2))
    mixed = (wave + noise) * 10 ** (draw.uniform(*LOUDNESS_DB) / 20)
    return mixed / max(1.0, np.abs(mixed).max() / 0.99)


class Synthesiser:
    """Runs espeak-ng in this process, without audio hardware."""

    _RETRIEVAL_SYNCHRONOUS = 2
    _RATE, _PITCH = 1, 3
    _CHARACTERS, _UTF8 = 1, 1

    def __init__(self, seed: int) -> None:
        # The library keeps voice and noise state in static variables, so each instance loads its own copy of the file.
        with tempfile.TemporaryDirectory() as folder:
            self._library = ctypes.CDLL(shutil.copy(espeakng_loader.get_library_path(), folder))
        data = espeakng_loader.get_data_path().encode()
        self._rate = self._library.espeak_Initialize(self._RETRIEVAL_SYNCHRONOUS, 0, data, 0)
        if self._rate <= 0:
            raise RuntimeError(f"espeak-ng cannot be initialised with the data in {data.decode()}")
        divisor = int(np.gcd(SAMPLE_RATE, self._rate))
        self._ratio = (SAMPLE_RATE // divisor, self._rate // divisor)
        self._filter = firwin(20 * max(self._ratio) + 1, 1 / max(self._ratio), window=("kaiser", 5.0))
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._blocks: list[np.ndarray] = []
        self._speaker: Speaker | None = None
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._take)  # this reference keeps it alive: the library holds only the address
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, speaker: Speaker) -> np.ndarray:
        """Returns the spoken text as float64 [samples] in [-1, 1] at 16 kHz."""
        library = self._library
        if speaker != self._speaker:
            self._speaker = speaker
            if library.espeak_SetVoiceByName(speaker.voice.encode()) != 0:
                raise ValueError(f"espeak-ng has no voice {speaker.voice}")
            library.espeak_SetParameter(self._RATE, speaker.rate, 0)
            library.espeak_SetParameter(self._PITCH, speaker.pitch, 0)
        self._blocks = []
        encoded = text.encode()
        status = library.espeak_Synth(
            encoded, ctypes.c_size_t(len(encoded) + 1), 0, self._CHARACTERS, 0, self._UTF8, None, None
        )
        if status != 0 or library.espeak_Synchronize() != 0 or not self._blocks:
            raise RuntimeError(f"espeak-ng failed to speak {text!r} (status {status})")
        wave = np.concatenate(self._blocks) / 2**15
        return resample_poly(wave, *self._ratio, window=self._filter)

    def _take(self, samples: Sequence[int], count: int, events: int) -> int:
        if count > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0
