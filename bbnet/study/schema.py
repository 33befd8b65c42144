"""The JSON schema of a study, for editors: `python -m bbnet.study.schema > studies/schema.json`."""

import json

from bbnet.study.config import Study


def study_schema() -> str:
    """The schema as text; a test holds `studies/schema.json` to it."""
    return json.dumps(Study.model_json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    print(study_schema(), end="")
