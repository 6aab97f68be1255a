"""`ptplus.run`, its exceptions, and what the package is without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

import ptplus


def convert(m: Path, **options):
    return ptplus.run("convert", m / "adapter", output=m / "a.gguf", base=m / "base", **options)


def test_a_conversion_a_verification_and_a_bundle(fixture):
    m = fixture("llama-gqa")
    document = convert(m, probe=m / "probe.safetensors")
    assert document["verification"]["pass"]
    assert document["row_order"] == "norm"
    verified = ptplus.run("verify", m / "a.gguf", base=m / "base", probe=m / "probe.safetensors")
    assert verified["metrics"]["max_abs"] < 1e-5
    assert ptplus.run("inspect", m / "a.gguf")["kind"] == "adapter"
    packed = ptplus.run("pack", m / "a.gguf", output=m / "b", base=m / "base", probe=m / "probe.safetensors")
    assert packed["status"] == "ok"
    assert ptplus.run("check", m / "b")["pass"]


def test_many_adapters_are_a_list_of_documents(fixture):
    m = fixture("llama-mha")
    (m / "broken").mkdir()
    (m / "broken/adapter_config.json").write_text("{")
    documents = ptplus.run(
        "convert", m / "foreign/flat", m / "broken", m / "foreign/peft", output=m / "out", base=m / "base", to="gguf"
    )
    assert sorted(d["status"] for d in documents) == ["failed", "ok", "ok"]
    documents = ptplus.run("convert", m / "foreign/flat", output=m / "out2", base=m / "base", to="gguf", jobs=1)
    assert [d["status"] for d in documents] == ["ok"]


def test_options_are_flags(fixture):
    m = fixture("qwen2")
    convert(m)
    with pytest.raises(ptplus.UsageError) as e:
        convert(m)
    assert e.value.code == "output-exists"
    convert(m, force=True, dry_run=False, probe=None)
    limited = ptplus.run(
        "quantize", m / "adapter", "q8_0", output=m / "q.gguf", base=m / "base", max_error=["kl=1", "relative=0.5"]
    )
    assert limited["tensors"][0]["dtype"] == "Q8_0"


@pytest.mark.parametrize(
    ("kind", "exit_code", "code", "call"),
    [
        (ptplus.Error, 1, "not-found", lambda m: ptplus.run("inspect", m / "nothing")),
        (ptplus.UsageError, 2, "usage", lambda m: ptplus.run("verify", m / "adapter", base=m / "base")),
        (ptplus.UsageError, 2, "usage", lambda m: ptplus.run("convert", m / "adapter", no_such_flag=1)),
        (ptplus.UsageError, 2, "usage", lambda m: ptplus.run("--version")),
        (ptplus.InvalidInput, 3, "safetensors-header", lambda m: ptplus.run("inspect", damaged(m))),
        (ptplus.DoesNotFit, 4, "adapter-mismatch", lambda m: ptplus.run("validate", m / "adapter", base=other(m))),
        (
            ptplus.NumbersDiffer,
            5,
            "numbers-differ",
            lambda m: ptplus.run(
                "verify", m / "adapter", base=m / "base", probe=m / "probe.safetensors", tolerance="max_abs=1e-12"
            ),
        ),
        (ptplus.IntegrityFailed, 6, "bundle-missing", lambda m: ptplus.run("check", m / "adapter")),
        (
            ptplus.Unsupported,
            7,
            "row-order-unknown",
            lambda m: ptplus.run("convert", m / "adapter", output=m / "a.gguf"),
        ),
    ],
)
def test_failures_are_exceptions(fixture, kind, exit_code, code, call):
    m = fixture("qwen3")
    with pytest.raises(kind) as e:
        call(m)
    assert type(e.value) is kind
    assert (e.value.exit_code, e.value.code) == (exit_code, code)
    assert e.value.message
    assert e.value.code in str(e.value)


def damaged(m: Path) -> Path:
    path = m / "damaged.safetensors"
    path.write_bytes(b'\x10\0\0\0\0\0\0\0{"a": tru        ')
    return path


def other(m: Path) -> Path:
    return Path(__file__).resolve().parents[3] / "fixtures/models/llama-gqa/base"


def test_an_exception_says_where_and_what_helps(fixture):
    m = fixture("llama-gqa")
    with pytest.raises(ptplus.Error) as e:
        ptplus.run("inspect", m / "adaptor")
    assert e.value.file == str(m / "adaptor")
    assert e.value.document["status"] == "failed"
    with pytest.raises(ptplus.DoesNotFit) as e:
        ptplus.run("validate", m / "adapter", base=Path(__file__).resolve().parents[3] / "fixtures/models/qwen2/base")
    assert e.value.file == str(m / "adapter")
    assert {f["place"] for f in e.value.details} >= {"num_layers", "head_dim"}
    assert "num_layers: expected" in str(e.value)
    error = ptplus.Error("m", hints=["do this", "or that"])
    assert error.hint == "do this"
    assert str(error).endswith("hint: do this\nhint: or that")


def test_names_that_begin_with_a_dash_are_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ptplus.Error) as e:
        ptplus.run("inspect", "--help")
    assert e.value.code == "not-found"


def test_the_module_is_the_program():
    ours = subprocess.run([ptplus.find_program(), "--version"], capture_output=True, text=True, check=True)
    as_module = subprocess.run([sys.executable, "-m", "ptplus", "--version"], capture_output=True, text=True, check=True)
    assert as_module.stdout == ours.stdout
    failed = subprocess.run([sys.executable, "-m", "ptplus", "inspect", "nothing"], capture_output=True, check=False)
    assert failed.returncode == 1


def test_a_missing_program_is_said(monkeypatch, tmp_path):
    monkeypatch.delenv("PTPLUS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("ptplus._program.sysconfig.get_path", lambda *a, **k: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no ptplus program"):
        ptplus.find_program()
    (tmp_path / "ptplus").write_text("")
    assert ptplus.find_program() == str(tmp_path / "ptplus")


def test_without_torch_the_rest_works_and_says_what_it_needs():
    code = """if True:
        import sys
        for name in ("torch", "peft", "transformers", "safetensors"):
            sys.modules[name] = None
        import ptplus
        assert ptplus.run("demo")["status"] == "ok"
        assert {"save_probe", "run", "attach"} <= set(dir(ptplus))
        for name, extra in (("save_probe", "ptplus[torch]"), ("attach", "ptplus[torch]")):
            try:
                getattr(ptplus, name)
            except ImportError as e:
                assert extra in str(e), e
            else:
                raise AssertionError(name)
        try:
            import ptplus.peft
        except ImportError as e:
            assert "ptplus[peft]" in str(e), e
        else:
            raise AssertionError("ptplus.peft")
        try:
            ptplus.nothing
        except AttributeError:
            pass
        print("ok")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr
