"""Copies are found, and only copies: 10,000 Chinese rows with 500 planted edits."""

import random
import time

import pytest

from llmforge.datagen.dedupe import compared, find_copies, find_copies_of

# Everyday words, so that rows share many 3-grams, as real questions do.
TEXT = (
    "公司 拖欠 工资 房东 押金 不退 合同 到期 续签 补偿 邻居 装修 漏水 快递 丢失 保价 加班 费用 "
    "仲裁 起诉 法院 证据 录音 转账 记录 借条 欠款 离婚 抚养费 孩子 学校 医院 事故 保险 理赔 责任 "
    "认定 车辆 维修 发票 商家 假货 退款 平台 投诉 物业 停水 停电 业主 委员会 水位 上涨 堤坝 转移 "
    "群众 道路 中断 抢修 电力 通信 恢复 燃气 泄漏 疏散 现场 指挥所 消防 救援 队伍 到达 北岸 南岸 "
    "大桥 东侧 西侧 "
)
WORDS = TEXT.split()


def sentences(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(WORDS, k=rng.randrange(18, 40))) for _ in range(count)]


def edited(text: str, rng: random.Random, share: float = 0.04) -> str:
    """The text with a share of its characters replaced, put in or taken out."""
    letters = list(text)
    for place in rng.sample(range(len(letters)), max(1, round(share * len(letters)))):
        letters[place] = rng.choice(["", rng.choice("的了在是有"), letters[place] + rng.choice("的了在是有")])
    return "".join(letters)


def test_500_planted_edits_among_10000_rows_are_found_and_nothing_else():
    rng = random.Random(7)
    rows = sentences(9500, seed=1)
    planted = {9500 + i: i * 19 for i in range(500)}
    rows += [edited(rows[of], rng) for of in planted.values()]
    start = time.process_time()
    found = find_copies(rows, 0.9)
    elapsed_s = time.process_time() - start
    right = [copy for copy in found if planted.get(copy.row) == copy.of]
    assert len(right) >= 490
    assert len(found) == len(right)
    assert all(copy.similarity >= 0.9 for copy in found)
    assert elapsed_s < 20


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("你好，世界！", "你好 世界"),
        ("ＡＢＣ１２３", "abc123"),
        ("Hello,  World.", "hello world"),
        ("使用 Python 打印", "使用Python打印"),
        ("第①条", "第1条"),
    ],
)
def test_spaces_punctuation_and_width_make_no_difference(a, b):
    assert compared(a) == compared(b)
    assert find_copies([a, b], 1) == [(1, 0, 1.0)]


def test_a_chain_of_small_edits_does_not_swallow_its_end():
    rng = random.Random(3)
    chain = [sentences(1, 5)[0]]
    for _ in range(12):
        chain.append(edited(chain[-1], rng, 0.06))
    dropped = {copy.row: copy for copy in find_copies(chain, 0.9)}
    kept = [i for i in range(len(chain)) if i not in dropped]
    assert len(kept) > 1
    assert all(copy.of in kept for copy in dropped.values())


def test_short_and_empty_rows_compare_too():
    assert [(c.row, c.of) for c in find_copies(["", "是", "否", "是。", "  "], 0.9)] == [(3, 1), (4, 0)]


def test_rows_of_a_test_set_are_found_in_training_rows():
    train = sentences(200, 11)
    test = [*sentences(20, 12), edited(train[17], random.Random(1))]
    assert [(c.row, c.of) for c in find_copies_of(test, train, 0.9)] == [(20, 17)]


def test_the_limit_decides():
    a = "前方现场指挥所位于大桥东侧，请尽快转移群众"
    b = "前方现场指挥所位于大桥西侧，请立即转移群众"
    assert find_copies([a, b], 0.95) == []
    assert [c.row for c in find_copies([a, b], 0.8)] == [1]
