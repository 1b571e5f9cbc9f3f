"""Keys of a dataset recipe that review, conversion and the other steps over rows read; a step's flags are its keys."""

from __future__ import annotations

from dataclasses import dataclass

from llmforge.config.option import option
from llmforge.data.files import KINDS

SHAPES = ("alpaca", "conversations", "messages", "sharegpt", "text")
ENCODINGS = ("auto", "utf-8", "utf-8-sig", "gb18030", "utf-16")
LANGUAGES = ("zh", "ja", "ko", "ru", "ar", "en")
MARKUP = ("auto", "keep")


@dataclass(frozen=True)
class CalibrateConfig:
    """How people review rows."""

    sample: float = option(1.0, "Share of the rows that is reviewed, drawn with the recipe's seed.", above=0, at_most=1)
    fields: list[str] = option([], "Fields shown and edited, such as input or out.points; default: the training row.")
    reviewer_env: str = option("USER", "Environment variable that holds the reviewer's name.")
    id: str = option("id", "Column of a file that names its rows; without one, their place does.")


@dataclass(frozen=True)
class ConvertConfig:
    """How a table or accepted rows become training files."""

    file: list[str] = option([], "Files to convert; default: the accepted rows of the data set's folder.", path="input")
    from_: str = option("auto", "Kind of the files; auto goes by their ending.", choices=("auto", *KINDS))
    encoding: str = option(
        "auto", "Encoding expected of text files; another one is read and reported.", choices=ENCODINGS
    )
    map: dict = option(
        {}, "Training field -> column, such as {user: title, assistant: reply}, or {messages: messages}."
    )
    question: str = option("question", "Column that append_question adds to the user's text.")
    append_question: str = option(
        "never",
        "Whether the question follows the mapped text on a new line.",
        choices=("never", "if_different", "always"),
    )
    where: str | None = option(None, "Expression over the columns; rows for which it is false are left out.")
    group: str | None = option(None, "Column; of the rows with one value of it the first that remains is taken.")
    drop_empty: bool = option(True, "Leave out rows without prompt or reply; false stops at the first instead.")
    html: str = option("auto", "auto turns cells that are HTML into Markdown, keep leaves them.", choices=MARKUP)
    to: str | None = option(None, "Shape of the rows; default: what the mapped fields say.", choices=SHAPES)
    format: str | None = option(None, "Another word for `to`.", choices=SHAPES)
    text: str | None = option(None, "Jinja text of a row when `to` is text, with the columns as names.")
    output_json: str = option(
        "dumps", "An answer that is no text becomes JSON text, or is refused.", choices=("dumps", "refuse")
    )
    ensure_ascii: bool = option(False, "Write characters beyond ASCII as \\u escapes.")
    key_order: str = option(
        "given",
        "Order of the keys in JSON answers; schema is that of output_schema.",
        choices=("given", "schema", "sorted"),
    )
    split: dict = option({}, "{dev, test, group_by}: shares below 1 or numbers of rows; a group stays on one side.")
    unreviewed: str = option("keep", "What happens to rows that nobody decided about.", choices=("keep", "drop"))
    out: str | None = option(
        None, "Folder of the files; default: that of `register`, else of the data set.", path="output"
    )


@dataclass(frozen=True)
class CleanConfig:
    """Which conversations are good enough to learn from."""

    html: str = option("auto", "auto turns turns that are HTML into Markdown, keep leaves them.", choices=MARKUP)
    blocked: list[str] = option(["openai", "chatgpt"], "Words no conversation may hold.")
    min_chars: int = option(16, "Characters a conversation has at least.", at_least=0)
    keep_lang: list[str] = option([], "Languages kept, told by their script; default: all.", choices=LANGUAGES)
    skip_lang: list[str] = option([], "Languages left out.", choices=LANGUAGES)
    repeated_digits: int = option(9, "Equal digits in a row that mark a broken reply.", at_least=2)


@dataclass(frozen=True)
class SplitConfig:
    """How long conversations are cut into parts of whole rounds."""

    max_tokens: int = option(2048, "Tokens a part may have.", at_least=1)
    model: str | None = option(None, "Model or folder whose tokenizer counts; without one characters are counted.")
    overhead: int = option(6, "Tokens the template adds to each message.", at_least=0)


@dataclass(frozen=True)
class NearConfig:
    """Which rows of files are copies of others."""

    field: str = option("", "Fields compared, joined by +, such as instruction+input; default: all texts of a row.")
    max: float = option(
        0.9, "Similarity (rapidfuzz ratio) from which two rows are copies; 1 leaves exact ones.", above=0, at_most=1
    )
    against: list[str] = option([], "Files whose rows must not come again, such as test sets.", path="input")


@dataclass(frozen=True)
class DiversifyConfig:
    """How the least similar rows are chosen."""

    field: str = option("", "Fields compared, joined by +; default: the user's turns.")
    keep: float = option(0.5, "Share of the rows to keep.", above=0, at_most=1)
    clusters: int = option(256, "Clusters at most; the square root of half the rows otherwise.", at_least=1)
    near: float = option(
        0.8, "Similarity from which rows are near copies and only the first is considered.", above=0, at_most=1
    )


@dataclass(frozen=True)
class ContaminationConfig:
    """How training rows are compared with test rows."""

    test: list[str] = option([], "Test files.", path="input")
    field: str = option("", "Fields compared, joined by +; default: all texts of a row.")
    ngram: int = option(13, "Words or Chinese characters in a row that must not be shared.", at_least=2)
    common: int = option(
        10, "A sequence found in more training rows than this is a template and tells nothing.", at_least=1
    )
    max: float = option(0.9, "Similarity from which a training row is a copy of a test row.", above=0, at_most=1)
    allowed: int = option(0, "Contaminated test rows allowed; more end with code 3.", at_least=0)


GROUPS: dict[str, type] = {
    "calibrate": CalibrateConfig,
    "convert": ConvertConfig,
    "clean": CleanConfig,
    "split": SplitConfig,
    "near": NearConfig,
    "diversify": DiversifyConfig,
    "contamination": ContaminationConfig,
}
