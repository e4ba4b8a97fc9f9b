"""ci/tools/signatures.py: schemas are read out of wheels, judged by what the model passes, and the
recorded table is true."""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("signatures", ROOT / "ci" / "tools" / "signatures.py")
signatures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(signatures)
operator_schema = sys.modules["operator_schema"]

RESULT = json.loads(signatures.RESULT.read_text(encoding="utf-8"))
SCHEMAS = json.loads((ROOT / "tests" / "ops" / "schemas.json").read_text(encoding="utf-8"))
OURS = "npu_op(Tensor x, Tensor? y=None, *, int k=1, str mode='a, b') -> (Tensor out, Tensor)"
CALL = operator_schema.Call(1, frozenset({"k"}))


@pytest.mark.parametrize(
    ("theirs", "fit", "note"),
    [
        (OURS, "same", ""),
        (
            "npu_op(Tensor x, Tensor? y=None, *, SymInt k=1, str mode='a, b') -> (Tensor, Tensor)",
            "same",
            "",
        ),
        (None, "absent", ""),
        (
            "npu_op(Tensor x, Tensor? y=None, *, int k=1, str mode='a, b', int z=0) -> (Tensor, Tensor)",
            "fits",
            "new: z",
        ),
        ("npu_op(Tensor x, *, int k=1) -> (Tensor, Tensor)", "fits", "not there: y, mode"),
        (
            "npu_op(Tensor x, Tensor? y=None, *, int k=2, str mode='a, b') -> (Tensor, Tensor)",
            "fits",
            "other defaults",
        ),
        (
            "npu_op(Tensor x, Tensor? y=None, *, int k=1, str mode='c') -> (Tensor, Tensor)",
            "differs",
            "mode defaults to",
        ),
        (
            "npu_op(Tensor x, Tensor? y=None, *, float k=1, str mode='a, b') -> (Tensor, Tensor)",
            "differs",
            "k is float",
        ),
        (
            "npu_op(Tensor x, Tensor? y=None, *, str mode='a, b') -> (Tensor, Tensor)",
            "differs",
            "no k",
        ),
        (
            "npu_op(Tensor x, Tensor? y=None, *, int k=1, str mode='a, b', int z) -> (Tensor, Tensor)",
            "differs",
            "needs z",
        ),
        (
            "npu_op(Tensor y, Tensor? x=None, *, int k=1, str mode='a, b') -> (Tensor, Tensor)",
            "differs",
            "by position",
        ),
        (
            "npu_op(Tensor x, Tensor? y=None, *, int k=1, str mode='a, b') -> Tensor",
            "differs",
            "returns Tensor",
        ),
    ],
)
def test_judgement(theirs, fit, note):
    got = operator_schema.judge(OURS, theirs, [CALL])
    assert got[0] == fit and note in got[1]


def test_without_a_call_every_argument_counts():
    assert operator_schema.judge(OURS, "npu_op(Tensor x, *, int k=1) -> (Tensor, Tensor)", []) == (
        "differs",
        "takes x by position; no y; no mode",
    )


@pytest.mark.parametrize(
    "schema",
    sorted(
        {o["schema"] for v in RESULT["versions"] for o in v["operators"].values() if o["schema"]}
    ),
)
def test_the_parser_reads_what_torch_reads(schema):
    ours, theirs = operator_schema.parse(schema), torch._C.parse_schema(schema)
    assert [(a.name, a.keyword_only, a.default is not None) for a in ours.arguments] == [
        (a.name, a.kwarg_only, a.has_default_value()) for a in theirs.arguments
    ]
    assert len(ours.results) == len(theirs.returns)


def wheel(folder: Path, library: bytes) -> Path:
    file = folder / "torch_npu-9.9.0-cp310-cp310-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("torch_npu/lib/libtorch_npu.so", library)
        made.writestr("torch_npu/version.py", "__version__ = '9.9.0'\ngit_version = 'abcdef0123'\n")
        made.writestr(
            "torch_npu/dynamo/torchair/_ge_concrete_graph/ge_converter/custom/a.py",
            "@register_fx_node_ge_converter(torch.ops.npu.npu_a.default)\ndef f(): ...\n",
        )
        made.writestr(
            "torch_npu/op_plugin/meta/_meta_registrations.py",
            '@impl(m, "npu_b.out")\ndef f(): ...\n',
        )
        made.writestr(
            "torch_npu-9.9.0.dist-info/METADATA",
            "Metadata-Version: 2.4\nName: torch_npu\nVersion: 9.9.0\nRequires-Dist: torch==9.9.0+cpu\n",
        )
    return file


def test_a_wheel_is_read_without_importing_it(tmp_path):
    strings = [
        b"npu_a(",
        b"xnpu_a(Tensor q) -> Tensor",
        b"npu_a(int wrong",
        b"npu::npu_a(Tensor x) -> Tensor",
        b"npu_b.List(Tensor[] x) -> Tensor",
        b"npu_b(Tensor x) -> ()",
    ]
    library = b"\x7fELF\0" + b"\0".join(strings) + b"\0"
    found = signatures.read_wheel(wheel(tmp_path, library), ["npu_a", "npu_b", "npu_c"])
    assert (found["version"], found["torch"], found["source"]) == ("9.9.0", "==9.9.0", "abcdef01")
    assert found["operators"] == {
        "npu_a": {"schema": "npu_a(Tensor x) -> Tensor", "ge": True, "shapes": False},
        "npu_b": {"schema": "npu_b(Tensor x) -> ()", "ge": False, "shapes": True},
        "npu_c": {"schema": None, "ge": False, "shapes": False},
    }


def test_a_folder_without_wheels_is_said(tmp_path, capsys):
    assert signatures.main(["--wheels", str(tmp_path)]) == 2
    assert "no wheel" in capsys.readouterr().err


def test_the_recorded_result_belongs_to_this_code():
    """The operators, the calls and the judgements are those of now; run ci/tools/signatures.py again if
    not."""
    made, names = signatures.calls(), signatures.operators()
    assert RESULT["called_by_model"] == sorted(made.keys() & set(names))
    for version in RESULT["versions"]:
        assert sorted(version["operators"]) == names
        for name, found in version["operators"].items():
            judged = operator_schema.judge(SCHEMAS[name], found["schema"], made.get(name, []))
            assert judged == (found["fit"], found["note"])


# its output_dtype is a ScalarType there, and W8A8 gives it; docs/versions.md says so
W8A8_LATER = {("2.9.0", "npu_grouped_matmul"), ("2.9.0", "npu_quant_matmul")}


def test_every_call_fits_every_supported_version_and_the_tested_one_is_the_contract():
    versions = {v["version"]: v for v in RESULT["versions"]}
    assert {"2.9.0", "2.11.0", "2.13.0", "2.14.0"} <= versions.keys()
    for name, found in versions["2.13.0"]["operators"].items():
        assert operator_schema.parse(found["schema"]) == operator_schema.parse(SCHEMAS[name])
    for version in versions.keys() - set(signatures.HISTORY):
        assert versions[version]["torch"] == "==" + version.split(".post")[0]
        for name in RESULT["called_by_model"]:
            fits = versions[version]["operators"][name]["fit"] in ("same", "fits")
            assert fits or (version, name) in W8A8_LATER, (version, name)
            # what writes in place is converted in its functional form
            forms = (name, f"{name}_functional")
            found = versions[version]["operators"]
            if name == "npu_format_cast":  # of weights, before anything is compiled
                continue
            assert any(found[n]["ge"] for n in forms if n in found), (
                f"{name} has no GE converter in {version}"
            )
    old = versions["2.1.0.post8"][
        "operators"
    ]  # the check can say no: the old sample's own torch_npu
    assert (
        old["npu_grouped_matmul"]["fit"] == "differs"
        and old["npu_interleave_rope"]["fit"] == "absent"
    )


def test_the_version_table_claims_a_check_only_where_one_was_made():
    from dsv3_port.doctor.versions import PAIRS

    claimed = {p.torch_npu for p in PAIRS if "wheel signature check" in p.ran.lower()}
    assert claimed == {v["version"] for v in RESULT["versions"]} - set(signatures.HISTORY)
