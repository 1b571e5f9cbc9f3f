"""Make every data set of this folder from the word lists in words/: `python data/make_data.py [FOLDER]`.

The same seed gives the same bytes; tests/test_dataset_entries.py runs this script and compares. Texts are our own, CC0.
Half of the classification test rows use wordings that no training row holds, so that a score is not a memory test.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SEED = 20240501
TRAIN_ROWS, TEST_ROWS = 1000, 200
EXTRACT_TRAIN_ROWS, EXTRACT_TEST_ROWS = 400, 100
PROMPT_TEST_ROWS = REQUEST_TEST_ROWS = 64


def words(name: str) -> dict[str, Any]:
    return yaml.safe_load((HERE / "words" / f"{name}.yaml").read_text(encoding="utf-8"))


def fill(rng: random.Random, text: str, slots: dict[str, list[str]]) -> str:
    """Replace every {name} by a draw from `slots[name]`, also inside what was drawn."""
    while found := re.search(r"\{(\w+)\}", text):
        text = text[: found.start()] + rng.choice(slots[found[1]]) + text[found.end() :]
    return text


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


class Reports:
    """Draws incident reports of one language."""

    def __init__(self, language: str):
        self.words = words(f"reports_{language}")
        self.gap = " " if language == "en" else ""
        self.rng = random.Random(f"{SEED} reports {language}")
        self.labels = list(self.words["classes"])
        self.seen: set[str] = set()

    def draw(self, label: str, wordings: list[str], tail: list[str] = (), deny: float = 0.5) -> tuple[str, str]:
        """One report of `label` and the place it names; `tail` are sentences that must be in it."""
        rng, w = self.rng, self.words
        event, place = fill(rng, rng.choice(wordings), w["slots"]), fill(rng, rng.choice(w["places"]), w["slots"])
        body = capital(re.sub("[EP]", lambda m: event if m[0] == "E" else place, rng.choice(w["joins"])))
        around = list(tail)
        if rng.random() < deny:
            other = rng.choice([name for name in self.labels if name != label])
            around.append(rng.choice(w["classes"][other]["denied"]))
        if rng.random() < 0.4:
            around.append(fill(rng, rng.choice(w["neutral"]), w["slots"]))
        rng.shuffle(around)
        sentences = [*around, body] if rng.random() < 0.1 else [body, *around]
        return rng.choice(w["openings"]) + self.gap.join(filter(None, sentences)), place

    def new(self, *args: Any, **options: Any) -> tuple[str, str]:
        """A report that was not drawn before, in any split."""
        while (report := self.draw(*args, **options))[0] in self.seen:
            pass
        self.seen.add(report[0])
        return report

    def classify(self, split: str, count: int) -> list[dict[str, str]]:
        rows = []
        for i in range(count):
            label = self.labels[i % len(self.labels)]  # balanced
            kinds = self.words["classes"][label]
            unseen = split == "test" and i // len(self.labels) % 2
            report, _ = self.new(label, kinds["test"] if unseen else kinds["train"])
            rows.append(self.row("instruction", report, {"label": label}))
        self.rng.shuffle(rows)
        return rows

    def extract(self, count: int) -> list[dict[str, str]]:
        rows, table = [], self.words["extract"]
        for i in range(count):
            label = self.labels[i % len(self.labels)]
            hurt = "1" if label == table["hurt_label"] else self.rng.choice(list(table["hurt"]))
            clock = f"{self.rng.randrange(24):02}:{self.rng.randrange(60):02}"
            tail = [self.rng.choice(table["time"]).replace("{clock}", clock), self.rng.choice(table["hurt"][hurt])]
            report, place = self.new(label, self.words["classes"][label]["train"], tail=tail, deny=0.0)
            rows.append(
                self.row(
                    "extract_instruction",
                    report,
                    dict(zip(table["keys"], (place, label, int(hurt), clock), strict=True)),
                )
            )
        self.rng.shuffle(rows)
        return rows

    def row(self, instruction: str, report: str, answer: dict[str, Any]) -> dict[str, str]:
        # The answer is text, not an object: an object loses its key order or its whole row in many loaders.
        return {
            "instruction": self.words[instruction].strip(),
            "input": report,
            "output": json.dumps(answer, ensure_ascii=False),
        }


def legal_faq() -> tuple[list[list[str]], list[dict], list[dict]]:
    """Rows of the CSV as a forum exports it, and its best replies as conversations, every tenth title for testing."""
    w, rng = words("legal_faq"), random.Random(f"{SEED} legal")
    table, train, test, titles = [["title", "question", "reply", "is_best"]], [], [], set()
    while len(titles) < 60:  # five per topic, as many as the shortest slot has values
        slots = {name: [rng.choice(values)] for name, values in w["slots"].items()}  # one choice per thread
        topic = w["topics"][len(titles) % len(w["topics"])]
        title, question, best = (fill(rng, topic[key], slots) for key in ("title", "question", "best"))
        if title in titles:
            continue
        titles.add(title)
        replies = [(best, "1"), *((reply, "0") for reply in rng.sample(w["poor"], rng.randrange(3)))]
        rng.shuffle(replies)
        table += [[title, question, reply, is_best] for reply, is_best in replies]
        asked = {"role": "user", "content": f"{title}\n{question}"}
        (test if len(titles) % 10 == 0 else train).append(
            {"conversations": [asked, {"role": "assistant", "content": best}]}
        )
    return table, train, test


class Hotline:
    """Draws conversations, tool calls, preferences and prose about a made-up emergency desk, in both languages."""

    def __init__(self, purpose: str):
        self.words = words("hotline")
        self.rng = random.Random(f"{SEED} hotline {purpose}")

    def languages(self, count: int) -> Iterator[dict[str, Any]]:
        """`count` word lists, English and Chinese in turn."""
        return (self.words["en" if i % 2 == 0 else "zh"] for i in range(count))

    def multiturn(self, count: int) -> list[dict]:
        rows, rng = [], self.rng
        for w in self.languages(count):
            slots = {name: [rng.choice(values)] for name, values in w["slots"].items()}
            report, ask, answer = rng.choice(w["cases"])
            turns = [report, ask, w["address"], answer]
            for follow_up in rng.sample(w["followups"], rng.randrange(1, 3)):
                turns += follow_up
            turns += w["thanks"]
            said = [{"from": ("human", "gpt")[i % 2], "value": fill(rng, turn, slots)} for i, turn in enumerate(turns)]
            rows.append({"system": w["system"], "conversations": said})
        return rows

    def tool_calls(self, count: int) -> list[dict]:
        rows, rng = [], self.rng
        dump = lambda value: json.dumps(value, ensure_ascii=False)  # noqa: E731
        for i, w in enumerate(self.languages(count)):
            slots = {name: [rng.choice(values)] for name, values in w["slots"].items()}
            slots |= {"station": [rng.choice(w["stations"])], "count": [str(rng.randrange(9))]}
            place = {"street": slots["street"][0], "number": slots["number"][0]}
            if i // 2 % 3:
                asked, answer = w["tool_ask"], w["tool_answer"]
                call = {"name": "nearest_station", "arguments": place}
                result = {"station": slots["station"][0], "minutes": int(slots["minutes"][0])}
            else:
                asked, answer = w["tool_count_ask"], w["tool_count_answer"]
                call = {"name": "count_reports", "arguments": {"street": place["street"]}}
                result = {"count": int(slots["count"][0])}
            said = [
                ("human", fill(rng, asked, slots)),
                ("function_call", dump(call)),
                ("observation", dump(result)),
                ("gpt", fill(rng, answer, slots)),
            ]
            rows.append(
                {
                    "conversations": [{"from": who, "value": text} for who, text in said],
                    "tools": dump([t["function"] for t in self.words["tools"]]),
                }
            )
        return rows

    def judged(self, count: int) -> Iterator[tuple[str, str, str]]:
        """What someone says, a good reply and a poor one."""
        for w in self.languages(count):
            report, good, after = self.rng.choice(w["cases"])
            asked = report + ("" if w is self.words["zh"] else " ") + self.rng.choice(["", w["address"]])
            slots = w["slots"]
            reply = after if asked.strip() != report else good
            yield fill(self.rng, asked, slots).strip(), reply, self.rng.choice(w["bad"])

    def preferences(self, count: int) -> list[dict]:
        return [
            {
                "conversations": [{"from": "human", "value": asked}],
                "chosen": {"from": "gpt", "value": good},
                "rejected": {"from": "gpt", "value": bad},
            }
            for asked, good, bad in self.judged(count)
        ]

    def kto(self, count: int) -> list[dict]:
        rows = []
        for i, (asked, good, bad) in enumerate(self.judged(count)):
            liked = i // 2 % 2 == 0
            said = [{"role": "user", "content": asked}, {"role": "assistant", "content": good if liked else bad}]
            rows.append({"messages": said, "label": liked})
        return rows

    def prompts(self, count: int) -> list[dict[str, str]]:
        """What people say first, in English, none twice; the reply is for the model to find."""
        w, said = self.words["en"], dict[str, None]()
        while len(said) < count:
            report = self.rng.choice(w["cases"])[0]
            said[fill(self.rng, f"{report} {w['address']}", w["slots"])] = None
        return [{"instruction": text} for text in said]

    def log(self, count: int) -> list[dict[str, str]]:
        """What the desk has answered so far, in English: a good reply and a poor one in turn."""
        w, rows = self.words["en"], []
        for i in range(count):
            report, _, good = self.rng.choice(w["cases"])
            asked = fill(self.rng, f"{report} {w['address']}", w["slots"])
            rows.append({"instruction": asked, "output": self.rng.choice(w["bad"]) if i % 2 else good})
        return rows

    def corpus(self, count: int) -> list[str]:
        return [fill(self.rng, self.rng.choice(w["corpus"]), w["slots"]) for w in self.languages(count)]


def json_requests() -> list[dict[str, str]]:
    """All requests for a JSON object, in a drawn order, none twice; they have no answers, since many would do."""
    w = words("requests")
    rows = [
        {"instruction": ask.format(keys=keys, thing=thing)}
        for ask in w["asks"]
        for keys in w["keys"]
        for thing in w["things"]
    ]
    random.Random(f"{SEED} json requests").shuffle(rows)
    return rows


def files() -> dict[str, bytes]:
    """Every file this script makes, by name."""
    made: dict[str, bytes] = {}

    def jsonl(name: str, rows: list[dict]) -> None:
        made[name] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()

    for language in ("en", "zh"):
        reports = Reports(language)
        jsonl(f"report_classify_{language}_train.jsonl", reports.classify("train", TRAIN_ROWS))
        jsonl(f"report_classify_{language}_test.jsonl", reports.classify("test", TEST_ROWS))
        jsonl(f"report_extract_{language}_train.jsonl", reports.extract(EXTRACT_TRAIN_ROWS))
        jsonl(f"report_extract_{language}_test.jsonl", reports.extract(EXTRACT_TEST_ROWS))
    table, train, test = legal_faq()
    sheet = io.StringIO(newline="")
    csv.writer(sheet, lineterminator="\r\n").writerows(table)
    made["legal_faq.csv"] = b"\xef\xbb\xbf" + sheet.getvalue().encode()  # with the BOM and line ends Excel writes
    jsonl("legal_faq_chat_train.jsonl", train)
    jsonl("legal_faq_chat_test.jsonl", test)
    jsonl("hotline_multiturn.jsonl", Hotline("multiturn").multiturn(120))
    jsonl("hotline_tools.jsonl", Hotline("tools").tool_calls(120))
    jsonl("reply_preference.jsonl", Hotline("preference").preferences(120))
    jsonl("reply_kto.jsonl", Hotline("kto").kto(120))
    prompts = Hotline("prompts").prompts(256)
    jsonl("hotline_prompts_train.jsonl", prompts[:-PROMPT_TEST_ROWS])
    jsonl("hotline_prompts_test.jsonl", prompts[-PROMPT_TEST_ROWS:])
    jsonl("hotline_log.jsonl", Hotline("log").log(96))
    requests = json_requests()
    jsonl("json_request_train.jsonl", requests[:-REQUEST_TEST_ROWS])
    jsonl("json_request_test.jsonl", requests[-REQUEST_TEST_ROWS:])
    made["handbook_corpus.txt"] = "".join(line + "\n" for line in Hotline("corpus").corpus(120)).encode()
    return made


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for name, content in files().items():
        (folder / name).write_bytes(content)
        print(f"{folder / name}: {len(content):,} bytes")
