"""The command line: quick help, sentences instead of tracebacks, what the words mean."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3_port import PortError, PortPlan, cli
from dsv3_port.cli.main import COMMANDS
from dsv3_port.cli.words import parse_gib, parse_ints, parse_plan, read_prompts

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "data" / "tiny-dsv3")


def run(*words: str) -> int:
    return cli.main(list(words))


def in_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_imports_no_torch():
    heavy = in_process(
        "import sys\nfrom dsv3_port import cli\ntry:\n    cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'papermill') if m in sys.modules])"
    )
    assert heavy.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        run(command, "--help")
    assert end.value.code == 0
    assert command in capsys.readouterr().out


def test_a_command_is_a_file_imported_on_use():
    files = {file.stem for file in Path(cli.__file__).parent.glob("*.py")}
    assert files - {"__init__", "main", "words", "streams"} == {
        c.replace("-", "_") for c in COMMANDS
    }
    used = in_process(
        "import sys\nfrom dsv3_port.cli.main import make_parser\n"
        "make_parser().parse_args(['plan', '--steps'])\n"
        "print(*sorted(m[14:] for m in sys.modules if m.startswith('dsv3_port.cli.')))"
    )
    assert used.split() == ["main", "plan", "streams", "words"]


def test_module_and_version():
    assert in_process(
        "import runpy, sys\nsys.argv = ['x', '--version']\ntry:\n    runpy.run_module('dsv3_port', "
        "run_name='__main__')\nexcept SystemExit: pass"
    ).startswith("dsv3-port 0.")


BAD = {
    "unknown step": (
        ["infer", "--model-dir", TINY, "--plan", "mla_low_rank,warp"],
        "unknown step 'warp'",
    ),
    "unknown rung": (["plan", "--plan", "upto:warp"], "unknown step 'warp'"),
    "no checkpoint named": (["infer"], "--model-dir"),
    "missing checkpoint": (["infer", "--model-dir", "nowhere"], "nowhere: no such folder"),
    "missing checkpoint to split": (
        ["shard", "--model-path", "nowhere", "--output-path", "x", "--world-size", "2"],
        "nowhere",
    ),
    "missing checkpoint to compare": (["compare", "nowhere"], "nowhere"),
    "device": (["infer", "--model-dir", TINY, "--device", "quantum"], "quantum"),
    "dtype": (["infer", "--model-dir", TINY, "--dtype", "int7"], "int7"),
    "dtype of a shard": (
        [
            "shard",
            "--model-path",
            TINY,
            "--output-path",
            "x",
            "--world-size",
            "2",
            "--dtype",
            "int7",
        ],
        "int7",
    ),
    "dtype of a forecast": (["plan", "--dtype", "q4"], "q4"),
    "profile": (["bench", "--profile", "nope"], "nope"),
    "profile of the tutorial": (["tutorial", "--profile", "nope"], "unknown profile 'nope'"),
    "notebook": (["tutorial", "--only", "77"], "no notebook '77'"),
    "no notebooks": (["tutorial", "--notebooks", "data"], "no notebooks here"),
    "preset": (["plan", "--config", "v4"], "'v4'"),
    "cards": (["plan", "--world-size", "eight"], "--world-size"),
    "card of a forecast": (["plan", "--forecast", "h100"], "a2, a2-280t, a3"),
    "memory": (["plan", "--hbm", "lots"], "--hbm"),
    "ranks": (
        ["shard", "--model-path", TINY, "--output-path", "x", "--world-size", "2", "--ranks", "0-"],
        "--ranks",
    ),
    "world size": (
        ["shard", "--model-path", TINY, "--output-path", "x", "--world-size", "3"],
        "3 ranks",
    ),
    "mode": (["infer", "--model-dir", TINY, "--exe-mode", "fast"], "EXE_MODE"),
    "block size": (
        ["infer", "--model-dir", TINY, "--plan", "production", "--block-size", "24"],
        "BLOCK_SIZE must be a multiple of 16 in 16..1024, not 24",
    ),
    "blocks without pages": (
        ["infer", "--model-dir", TINY, "--block-size", "16"],
        "this plan's cache is 'fixed': add --plan production",
    ),
    "processes": (["infer", "--model-dir", TINY, "--world-size", "3"], "over 3 ranks"),
    "prompts": (["infer", "--model-dir", TINY, "--prompts", "nowhere.json"], "nowhere.json"),
    "batch": (["bench", "--batch", "0"], "--batch must be 1 or more"),
    "picture": (["bench", "--plot", "ladder.jpg"], "ladder.jpg"),
    "folder of the results": (
        ["infer", "--model-dir", TINY, "--json", "no/where.json"],
        "no/where.json",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(case, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    words, named = BAD[case]
    assert run(*words) == 2
    seen = capsys.readouterr()
    assert named in seen.err
    assert seen.err.startswith("dsv3-port: ")
    assert len(seen.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "out of memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 TB"),
            2,
            "out of memory",
        ),
    ],
)
def test_interrupt_and_memory(error, code, text, monkeypatch, capsys):
    def doctor(args):
        raise error

    monkeypatch.setattr("dsv3_port.cli.doctor.run", doctor)
    assert run("doctor") == code
    assert text in capsys.readouterr().err


def test_a_defect_of_our_own_is_not_hidden(monkeypatch, tmp_path, capsys):
    def doctor(args):
        raise RuntimeError("a defect")

    monkeypatch.setattr("dsv3_port.cli.doctor.run", doctor)
    monkeypatch.setattr("dsv3_port.files.user_log_path", lambda name: tmp_path)
    assert run("doctor") == 2
    assert "RuntimeError: a defect" in capsys.readouterr().err
    assert "in doctor" in next(tmp_path.iterdir()).read_text()


def test_a_torch_that_cannot_be_imported_is_told(monkeypatch, capsys):
    broken = (None, "ImportError: libascendcl.so")
    monkeypatch.setattr("dsv3_port.doctor.machine.import_torch", lambda: broken)
    assert run("plan") == 2
    assert "libascendcl.so" in capsys.readouterr().err
    assert run("plan", "--steps") == 0  # needs none


def test_plan_words():
    assert parse_plan("full") == PortPlan.full()
    assert parse_plan("upstream") == PortPlan.upstream()
    assert parse_plan("production") == PortPlan.production()
    assert parse_plan("upto:9") == PortPlan.full().plus("paged_cache")
    assert parse_plan("upto:gmm_routing") == PortPlan.upto("gmm_routing")
    assert parse_plan("upto:9+w8a8") == PortPlan.upto("9").replace(quant="w8a8")
    prolog = PortPlan.production().replace(mla_prolog=True)
    assert parse_plan("production+mla_prolog") == prolog
    for words in ("production+w8a8+mla_prolog", "production+mla_prolog+w8a8"):
        assert parse_plan(words) == prolog.replace(quant="w8a8")
    with pytest.raises(PortError, match="mla_prolog writes into blocks"):
        parse_plan("full+mla_prolog")
    c8 = prolog.replace(quant="w8a8", kv_cache_dtype="int8")
    for words in ("production+w8a8+mla_prolog+c8", "production+mla_prolog+w8a8+c8"):
        assert parse_plan(words) == c8
    with pytest.raises(
        PortError, match="'int8' is what npu_mla_prolog_v3 writes.*needs quant 'w8a8'"
    ):
        parse_plan("production+mla_prolog+c8")
    split = PortPlan.full().replace(decode_attention="split")
    assert parse_plan("full+split") == split
    assert parse_plan("full+w8a8+split") == split.replace(quant="w8a8")
    with pytest.raises(PortError, match="'split' reads one buffer, and cache 'paged'"):
        parse_plan("production+split")
    int8 = PortPlan.upto("9").replace(quant="w8a8")
    assert parse_plan("upto:9+w8a8") == int8
    assert parse_plan("upto:9+w8a8+nz") == int8.replace(weight_format="nz")
    assert parse_plan("mla_low_rank, 6.1").step_ids == ("mla_low_rank", "fixed_kv_cache")
    with pytest.raises(PortError, match="unknown step ''"):
        parse_plan("")


def test_number_words():
    assert parse_ints("0-3,8", "x") == [0, 1, 2, 3, 8]
    for bad in ("", "3-1", "1-2-3", "-1", "1.5", "0-"):
        with pytest.raises(PortError, match="x: "):
            parse_ints(bad, "x")
    assert parse_gib("64GiB") == parse_gib("64") == parse_gib("64g") == 64
    assert parse_gib("64GB") == pytest.approx(59.6, abs=0.01)
    for bad in ("-1", "inf", "nan", "GiB"):
        with pytest.raises(PortError):
            parse_gib(bad)


def test_prompt_files(tmp_path):
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"completion": ["a"], "chat": [[{"role": "user", "content": "b"}]]}))
    assert read_prompts(None, str(file), chat=False) == ["a"]
    assert read_prompts(None, str(file), chat=True)[0][0]["content"] == "b"
    assert read_prompts(["x"], str(file), chat=False) == ["x"]
    for text in ("[]", "{}", "[1]", "nonsense"):
        file.write_text(text)
        with pytest.raises(PortError, match=r"p\.json"):
            read_prompts(None, str(file), chat=False)


def test_plan_prints_a_table_and_json(capsys):
    assert run("plan", "--world-size", "16,32", "--dtype", "bf16") == 0
    table = capsys.readouterr().out
    assert "KV latent" in table and "bfloat16: 32 cards of 64GiB are enough" in table
    assert len(table.splitlines()) == 6
    assert run("plan", "--world-size", "32", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["fits"] is True


def test_plan_counts_a_paged_cache_in_whole_blocks(capsys):
    sizes = {}
    for plan, length in (("full", 4097), ("full", 4224), ("upto:9", 4097)):
        words = ("--plan", plan, "--seq-len", str(length), "--world-size", "32", "--json")
        assert run("plan", *words) == 0
        (row,) = json.loads(capsys.readouterr().out)
        sizes[plan, length] = row["kv_latent_bytes"], row["total_bytes"], row["fits"]
    assert sizes["upto:9", 4097] == sizes["full", 4224] > sizes["full", 4097]
    assert sizes["full", 4224][2] is True


def test_plan_what_if_suggests_only_what_divides_and_fits(capsys):
    assert run("plan", "--what-if", "--world-size", "7,8,32") == 0
    text = capsys.readouterr().out
    assert "suggested: 32 ranks" in text and "not a measurement" in text
    assert "cannot be cut over 7 ranks" in text and "NPU kernels measured by others" in text
    assert run("plan", "--what-if", "--world-size", "8,32", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["world_size"], r["possible"], r["suggested"]) for r in rows] == [
        (8, False, False),
        (32, True, True),
    ]
    assert rows[0]["decode_ms"] is None and rows[1]["rows"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--what-if", "--world-size", "7"), "no layout is possible"),
        (("--forecast", "a3", "--world-size", "7"), "cannot be cut over 7 ranks"),
        (("--what-if", "--plan", "production"), "no table has its kernels' times"),
        (("--what-if", "--cards", "0"), "--cards must be 1 or more"),
        (("--what-if", "--kernels", "nowhere.csv"), "nowhere.csv: not readable"),
    ],
)
def test_plan_refuses_in_one_sentence(capsys, words, said):
    assert run("plan", *words) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1


def test_plan_forecast_says_what_does_not_fit(capsys):
    assert run("plan", "--forecast", "a3", "--world-size", "8") == 0
    assert "8 ranks: does not fit: needs" in capsys.readouterr().out


def test_npu_kernels_import(capsys, tmp_path):
    from tests.forecast.test_own_kernels import DETAILS, a_card_at_half_speed, write

    write(tmp_path / "kernel_details.csv", DETAILS, a_card_at_half_speed())
    out = tmp_path / "own.csv"
    assert run("npu-kernels", "import", str(tmp_path), "--device", "mine", "--out", str(out)) == 0
    text = capsys.readouterr().out
    assert "mine beside the published card" in text and "2.00" in text and "[k" in text
    assert "matrix product" in text and out.is_file()
    assert run("npu-kernels", "import", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["beside"]
    assert run("npu-kernels", "import", str(tmp_path / "none")) == 2
    assert "no kernel_details" in capsys.readouterr().err


def test_plan_forecasts_times(capsys):
    from dsv3_port import STEPS

    args = (
        "plan",
        "--config",
        TINY,
        "--forecast",
        "a2",
        "--world-size",
        "1,2",
        "--seq-len",
        "64",
        "--prefill",
        "16",
    )
    assert run(*args) == 0
    first, _, _, *rows, assumed, rates, one, two = capsys.readouterr().out.splitlines()
    assert first.startswith("FORECAST, nothing measured") and "Ascend 910B" in first
    assert len(rows) == len(STEPS) and all(row.count(" to ") == 4 for row in rows)
    assert assumed.startswith(
        "Assumed: 32% to 71% of the memory's rate"
    )  # as kernels were measured
    assert "msmodeling" in rates and one.startswith("1 ranks: fits") and "2 ranks" in two
    assert run(*args, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 4 * len(STEPS) and all(f["forecast"] for f in found)


def test_steps_are_those_of_the_registry(capsys):
    from dsv3_port.steps import PRODUCTION, STEPS

    assert run("plan", "--steps") == 0
    assert all(
        s.id in line
        for s, line in zip(
            (*STEPS, *PRODUCTION), capsys.readouterr().out.splitlines()[2:], strict=True
        )
    )


def test_infer_prints_text_and_writes_json(tmp_path, capsys):
    file = tmp_path / "out.json"
    assert (
        run(
            "infer",
            "--model-dir",
            TINY,
            "--prompt",
            "Once upon a time",
            "--max-new-tokens",
            "6",
            "--device",
            "cpu",
            "--json",
            str(file),
        )
        == 0
    )
    out = capsys.readouterr().out
    report = json.loads(file.read_text())
    (made,) = report["generations"]
    assert report["new_tokens"] == 6 and report["seconds_first"] > 0 and len(report["ranks"]) == 1
    assert len(made["token_ids"]) == 6
    assert out.startswith("Once upon a time" + made["text"])
    assert "first token after" in out
    assert "tokens/s" in out


def test_infer_in_batches_gives_the_same_texts(tmp_path):
    texts = {}
    for size in ("1", "2"):
        file = tmp_path / f"{size}.json"
        assert (
            run(
                "infer",
                "--model-dir",
                TINY,
                "--prompt",
                "One windy morning",
                "--prompt",
                "The",
                "--device",
                "cpu",
                "--max-new-tokens",
                "8",
                "--batch-size",
                size,
                "--json",
                str(file),
            )
            == 0
        )
        texts[size] = [g["text"] for g in json.loads(file.read_text())["generations"]]
    assert texts["1"] == texts["2"]


def test_show_settings_says_where_each_came_from(monkeypatch, capsys):
    monkeypatch.setenv("BATCH_SIZE", "3")
    assert run("infer", "--show-settings", "--chat") == 0
    lines = {
        line.split()[0]: " ".join(line.split()[1:])
        for line in capsys.readouterr().out.splitlines()[2:]
    }
    assert lines["BATCH_SIZE"] == "3 environment BATCH_SIZE"
    assert lines["TOKENIZER_MODE"] == "chat flag --tokenizer-mode"
    assert lines["INPUT_MAX_LEN"] == "1024 default"


def test_compare_says_whether_two_plans_agree(capsys):
    assert run("compare", TINY, "transformers", "--device", "cpu", "--tokens", "6") == 0
    assert "agree at all" in capsys.readouterr().out
    assert run("compare", TINY, "--device", "cpu", "--tokens", "6", "--rtol", "1e-12") == 1
    assert "part at" in capsys.readouterr().out
    assert (
        run(
            "compare",
            TINY,
            "--device",
            "cpu",
            "--tokens",
            "6",
            "--plan-b",
            "full",
            "--dtype-a",
            "bf16",
        )
        != 2
    )
    assert "data/tiny-dsv3 (full, bf16)" in capsys.readouterr().out.replace(TINY, "data/tiny-dsv3")
    assert run("compare", TINY, "transformers", "--ranks-b", "2") == 2


def test_shard_dry_run_writes_nothing(tmp_path, capsys):
    assert (
        run(
            "shard",
            "--model-path",
            TINY,
            "--output-path",
            str(tmp_path / "x"),
            "--world-size",
            "2",
            "--ranks",
            "1",
            "--dry-run",
            "--json",
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["ranks"] == [1]
    assert not (tmp_path / "x").exists()


def test_doctor_prints_findings(capsys):
    code = run("doctor", "--json")
    found = json.loads(capsys.readouterr().out)
    assert {c["name"] for c in found} >= {"Python", "torch", "device", "CANN"}
    assert code == int(any(c["status"] == "FAIL" for c in found))
    run("doctor")
    assert "Python" in capsys.readouterr().out
