"""A training on a mixture: its table is said before the first step, and its steps are those of the rows it draws."""

import json

from llmforge.cli import main


def test_a_run_learns_from_the_mixture_it_prints(tmp_path, monkeypatch, capsys, tiny_model_dir):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    for name, count in (("a", 6), ("b", 30)):
        rows = [{"instruction": f"{name}{i}", "output": "x"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = "dataset=a.jsonl,b.jsonl mix_strategy=equal mix_rows=16 output_dir=run device=cpu"
    words += " per_device_train_batch_size=4 num_train_epochs=2 logging_steps=1 plot_loss=false template=chatml"
    assert main(["train", f"model_name_or_path={tiny_model_dir}", *words.split(), "mix_caps={b: 4}"]) == 0
    printed = capsys.readouterr()
    table = [line.split() for line in (printed.out + printed.err).splitlines() if line.rstrip().endswith("%")]
    assert [row[-6:-3] for row in table[-2:]] == [["a", "6", "8"], ["b", "30", "4"]]
    report = json.loads((tmp_path / "run/data_report.json").read_text(encoding="utf-8"))
    assert [(share["dataset"], share["rows"]) for share in report["mixture"]] == [("a", 8), ("b", 4)]
    log = (tmp_path / "run/trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(log[-1])["current_steps"] == 6  # 12 rows an epoch, 4 a step, 2 epochs
