"""The pages with Python code, run from top to bottom on a tiny base: Python as one program, commands in between."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from tiny import ROOT, build, load_base, save_base
from transformers import AutoTokenizer

import ptplus

PAGES = ["docs/TUTORIAL.md", "docs/howto/trainer-checkpoint.md", "docs/howto/training-loop.md"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the base in `work/base`, and `ptplus` on the path."""
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "fixtures/tokenizers/smollm")
    save_base(build(vocab_size=len(tokenizer)), Path("work/base"))
    tokenizer.save_pretrained("work/base")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ptplus").symlink_to(Path(ptplus.find_program()).resolve())
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def blocks(page: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(python|sh)\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)


@pytest.mark.parametrize("page", PAGES)
def test_a_page(page, here, capfd):
    names: dict = {}
    kinds = set()
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, page, "exec"), names)
        else:
            done = subprocess.run(["bash", "-euc", text], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
            if "--probe" in text:
                assert "verified against the probe" in done.stdout
            if "mine.pt" in text:
                for found in ("feature_map silu", "memory_scale 0.5", "query_tap pre_rope"):
                    assert found in done.stdout, done.stdout
        kinds.add(language)
    assert "python" in kinds
    if page == "docs/TUTORIAL.md":
        assert names["document"]["verification"]["pass"]


def test_the_readme_makes_a_probe(here):
    model = load_base(Path("work/base"))
    ptplus.attach(model, ptplus.new_adapter(model))
    torch.nn.init.normal_(model.ptplus_adapter.parts(0)["memory"])
    tokenizer = AutoTokenizer.from_pretrained("work/base")
    [(_, text)] = [b for b in blocks("README.md") if b[0] == "python"]
    exec(text, {"model": model, "tokenizer": tokenizer})
    assert Path("probe.safetensors").exists()


def test_every_page_that_uses_the_package_is_run():
    pages = [p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"]]
    uses = {p for p in pages if any(language == "python" and "import ptplus" in text for language, text in blocks(p))}
    assert uses == {*PAGES, "README.md"}
