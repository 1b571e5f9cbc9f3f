"""Embeddings and scores against transformers' plain forward pass, alone and in company."""

from __future__ import annotations

import asyncio
import json

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers

from llmforge.config.load import load_recipe
from llmforge.data.example import Message
from llmforge.data.tokenizer import load_tokenizer
from llmforge.errors import RecipeError
from llmforge.infer.local.embed import batches, load_encoder
from llmforge.infer.local.encoder_files import is_encoder
from llmforge.infer.local.engine import LocalEngine
from llmforge.infer.local.readings import CALL_BYTES, Reading, Readings
from llmforge.infer.local.served import ServedModels
from llmforge.infer.protocol import Conversation, GenerateRequest, RequestError, Sampling, TokenIds, UnknownModel
from llmforge.model.value_head import ValueHead, save_value_head

TEXTS = ["打印机卡纸了", "a", "please reset my password", "b c d e f g h i j k l m n o p"]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *"abcdefghijklmnopqrstuvwxyz",
    "please",
    "reset",
    "my",
    "password",
    "打",
    "印",
]


@pytest.fixture(scope="module")
def bert_dir(tmp_path_factory):
    """A random two-layer BERT with a WordPiece tokenizer, laid out as sentence-transformers lay bge out."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **named}))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=20, initializer_range=0.5, **sizes)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    modes = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return folder


def by_transformers(folder, text, pooling):
    """The vector that the plain forward pass of one text gives."""
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = transformers.AutoModel.from_pretrained(folder).eval()(input_ids=ids)[0][0]
    return F.normalize({"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling], dim=0)


def encoder(folder, pooling=None):
    return load_encoder("m", folder, torch.device("cpu"), torch.float32, pooling)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize("which", ["bert_dir", "tiny_model_dir"])
def test_vectors_are_those_of_the_plain_forward_pass(which, pooling, request):
    folder = request.getfixturevalue(which)
    embedder = encoder(folder)
    together = [torch.tensor(reading.values) for reading in embedder.embed(TEXTS, pooling)]
    alone = [torch.tensor(embedder.embed([text], pooling)[0].values) for text in TEXTS]
    expected = [by_transformers(folder, text, pooling) for text in TEXTS]
    for rows in (together, alone):
        torch.testing.assert_close(torch.stack(rows), torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert all(row.norm().item() == pytest.approx(1, abs=1e-6) for row in together)


def test_a_model_is_pooled_as_its_files_say_else_as_its_attention_wants(bert_dir, tiny_model_dir, tmp_path):
    import shutil

    assert encoder(bert_dir).pooling == "cls"
    assert encoder(bert_dir, "mean").pooling == "mean"
    assert encoder(tiny_model_dir).pooling == "last"  # causal
    plain = shutil.copytree(bert_dir, tmp_path / "plain", ignore=shutil.ignore_patterns("1_Pooling"))
    assert encoder(plain).pooling == "mean"
    with pytest.raises(RecipeError, match="pooling: got 'max', expected one of mean, last, cls"):
        encoder(bert_dir, "max")


def test_long_texts_are_refused_or_cut_inside_what_surrounds_them(bert_dir):
    embedder = encoder(bert_dir)
    long = " ".join("abcdefghijklmnopqrstuvwxyz")
    fine, refused = embedder.embed(["a", long])
    assert fine.error is None
    assert refused.error == "the text has 28 tokens; m reads 20; max_length cuts longer ones"
    (cut,) = embedder.embed([long], max_tokens=5)
    assert (cut.num_tokens, cut.error) == (5, None)
    (short,) = embedder.embed(["a b c"])
    torch.testing.assert_close(torch.tensor(cut.values), torch.tensor(short.values))


def test_ids_are_read_as_they_are(bert_dir):
    embedder = encoder(bert_dir)
    by_text, by_ids = embedder.embed(["a b"])[0], embedder.embed([TokenIds((2, 4, 5, 3))])[0]
    assert by_text.values == pytest.approx(by_ids.values)
    assert "outside the vocabulary" in embedder.embed([TokenIds((2, 999))])[0].error
    assert embedder.embed([TokenIds(())])[0].error == "the text is empty"


def test_batches_hold_their_budget_and_every_row():
    made = list(batches([3, 9, 1, 9, 2], 18))
    assert made == [[1, 3], [0, 4, 2]]
    assert list(batches([50], 18)) == [[0]]


def test_what_has_a_head_that_writes_is_no_encoder(bert_dir, tiny_model_dir):
    assert is_encoder(bert_dir)
    assert not is_encoder(tiny_model_dir)


# Behind the engine


@pytest.fixture(scope="module")
def runs(tiny_model_dir, tmp_path_factory):
    """Two adapters on the tiny base: one that writes, and a reward model."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("writer", "judge"):
        torch.manual_seed(len(name))
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        peft.get_peft_model(base, config).save_pretrained(root / name)
        manifest = {"base_model": str(tiny_model_dir), "template": "chatml"}
        (root / name / "manifest.json").write_text(json.dumps(manifest))
    save_value_head(ValueHead(32), root / "judge")
    return root


@pytest.fixture(scope="module")
def served(runs, bert_dir, tiny_model_dir):
    words = {
        "adapters": {"writer": str(runs / "writer"), "judge": str(runs / "judge")},
        "embedders": {"bge": str(bert_dir), "mean": {"path": str(bert_dir), "pooling": "mean"}},
    }
    given = [f"{key}={json.dumps(value)}" for key, value in words.items()]
    recipe = load_recipe(
        [f"model_name_or_path={tiny_model_dir}", "template=chatml", "served_model_name=base", *given], "api"
    )
    return ServedModels.from_recipe(recipe)


def with_engine(served, scenario):
    async def run():
        engine = LocalEngine(served)
        await engine.start()
        try:
            return await scenario(engine)
        finally:
            await engine.stop()

    return asyncio.run(run())


CHAT = Conversation((Message("user", "Please reset my password."), Message("assistant", "Done.")))


def judged(runs, tiny_model_dir, ids):
    """Values of the reward model by PEFT and a plain product."""
    from safetensors.torch import load_file

    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model = peft.PeftModel.from_pretrained(base, runs / "judge").eval()
    with torch.no_grad():
        states = model.get_base_model().model(input_ids=torch.tensor([ids]))[0][0]
    return (states @ load_file(runs / "judge" / "value_head.safetensors")["value_head.weight"][0]).tolist()


def test_each_name_says_what_it_is_for(served):
    tasks = {card.id: sorted(card.tasks) for card in served.cards}
    assert tasks == {
        "base": ["embed", "generate"],
        "writer": ["embed", "generate"],
        "judge": ["score"],
        "bge": ["embed"],
        "mean": ["embed"],
    }


def test_a_reward_model_scores_what_peft_computes_while_others_write(served, runs, tiny_model_dir):
    tokenizer = load_tokenizer(tiny_model_dir)
    ids = served.core.template.encode(tokenizer, CHAT.messages, ()).input_ids
    expected = judged(runs, tiny_model_dir, ids)

    async def scenario(engine):
        async def write():
            request = GenerateRequest("writer", TokenIds((7, 8, 9)), Sampling(temperature=0, max_new_tokens=30))
            return [piece async for piece in engine.generate(request)]

        scores, pieces = await asyncio.gather(engine.score("judge", [CHAT, TokenIds((9,) * 600), CHAT]), write())
        return scores, pieces

    scores, pieces = with_engine(served, scenario)
    assert pieces[-1].finish_reason in ("length", "stop")
    assert scores.scores[0] == pytest.approx(expected[-1], abs=1e-5)
    assert scores.token_scores[2] == pytest.approx(expected, abs=1e-5)
    assert scores.scores[1] is None
    assert scores.reasons == [None, "the conversation has 600 tokens; the model reads 512", None]
    assert scores.prompt_tokens == 2 * len(ids) + 600


def test_embeddings_of_base_adapter_and_encoder_come_in_order(served, runs, bert_dir, tiny_model_dir):
    async def scenario(engine):
        return await asyncio.gather(*(engine.embed(name, TEXTS * 4) for name in ("base", "writer", "bge", "mean")))

    found = [torch.tensor(result.vectors) for result in with_engine(served, scenario)]
    for vectors, folder, pooling in ((found[0], tiny_model_dir, "last"), (found[2], bert_dir, "cls")):
        expected = torch.stack([by_transformers(folder, text, pooling) for text in TEXTS])
        torch.testing.assert_close(vectors, expected.repeat(4, 1), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-3)  # the adapter changes what is read
    assert not torch.allclose(found[2], found[3], atol=1e-3)


def test_a_name_is_refused_for_what_it_is_not_for(served):
    async def scenario(engine):
        with pytest.raises(UnknownModel, match="known: base, writer, bge, mean"):
            await engine.embed("judge", ["a"])
        with pytest.raises(UnknownModel, match="known: judge"):
            await engine.score("base", [CHAT])
        with pytest.raises(UnknownModel, match=r"known: base, writer$"):
            await anext(engine.generate(GenerateRequest("bge", TokenIds((5,)))))
        with pytest.raises(RequestError, match="pooling: got 'max'"):
            await engine.embed("bge", ["a"], "max")
        with pytest.raises(RequestError, match=r"input\.1: the text has 28 tokens"):
            await engine.embed("bge", ["a", " ".join("abcdefghijklmnopqrstuvwxyz")])
        with pytest.raises(RequestError, match="the last one must be the assistant's"):
            await engine.score("judge", [Conversation(CHAT.messages[:1])])

    with_engine(served, scenario)


def test_a_model_that_only_reads_can_be_the_served_one(bert_dir):
    recipe = load_recipe([f"model_name_or_path={bert_dir}", "served_model_name=bge"], "api")

    async def scenario(engine):
        result = await engine.embed("bge", TEXTS)
        with pytest.raises(UnknownModel):
            await anext(engine.generate(GenerateRequest("bge", TokenIds((5,)))))
        return result.vectors

    vectors = with_engine(ServedModels.from_recipe(recipe), scenario)
    torch.testing.assert_close(torch.tensor(vectors[1]), by_transformers(bert_dir, "a", "cls"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "x", "pool": "cls"}, "no such key 'pool'"),
        (5, "got 5, expected a path"),
        ("/nowhere", "no folder at /nowhere"),
    ],
)
def test_an_embedder_that_cannot_be_is_refused(served, entry, message):
    with pytest.raises(RecipeError, match=message):
        served.attach_embedder("new", entry)
    assert "new" not in [card.id for card in served.cards]


# Gathering


def gathering(scenario, num_calls=1):
    """Run a scenario with Readings whose calls are recorded and answer with the length of each text."""
    calls = []

    async def call(method, model, texts, *options):
        calls.append((model, list(texts), options))
        await asyncio.sleep(0)
        if "boom" in texts:
            raise RequestError("boom")
        return [Reading((float(len(text)),), 1) for text in texts]

    async def run():
        return await scenario(Readings(call, lambda: num_calls))

    return asyncio.run(run()), calls


def test_texts_of_several_requests_share_calls_of_one_kind():
    async def scenario(readings):
        return await asyncio.gather(
            readings.read("embed", "m", ["a" * 1500], ""),
            readings.read("embed", "m", ["b", "cc"], ""),
            readings.read("embed", "other", ["d"], ""),
            readings.read("embed", "m", ["eee"], ""),
        )

    results, calls = gathering(scenario)
    assert [[reading.values[0] for reading in result] for result in results] == [[1500], [1, 2], [1], [3]]
    assert [(model, len(texts)) for model, texts, _ in calls] == [("m", 1), ("m", 3), ("other", 1)]


def test_a_call_holds_so_many_bytes_and_one_text_at_least():
    texts = ["x" * CALL_BYTES * 2, *["y" * (CALL_BYTES // 2)] * 5]

    async def scenario(readings):
        return await readings.read("embed", "m", texts)

    results, calls = gathering(scenario)
    assert [reading.values[0] for reading in results] == [float(len(text)) for text in texts]
    assert [len(taken) for _, taken, _ in calls] == [1, 2, 2, 1]


def test_a_call_that_fails_is_the_error_of_those_it_held():
    async def scenario(readings):
        first = asyncio.create_task(readings.read("embed", "m", ["z"]))  # takes the only call
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="boom"):
            await readings.read("embed", "m", ["boom"])
        return await first

    (result,), _ = gathering(scenario)
    assert result.values == (1.0,)
