# Tasks for people who work on vecmill; `just` alone lists them.

_default:
    @just --list

# What CI checks.
check:
    bash .ci/run

# Every interleaving of the memory pool's lock-free path.
loom:
    RUSTFLAGS="--cfg loom" cargo test -p vecmill-memory --lib --release --target-dir target/loom loom_tests

# Undefined behaviour in the memory crate's tests; needs a nightly toolchain with miri.
miri:
    MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=8 cargo +nightly miri test -p vecmill-memory --lib --test pool --test pool_paths

# Everything that reads what others wrote, under libFuzzer for so long each; needs a C++ compiler.
fuzz seconds="600" *targets:
    bash scripts/fuzz.sh {{seconds}} {{targets}}

# Licences, advisories and sources of dependencies.
deny:
    cargo deny check

# Format everything.
fmt:
    cargo fmt --all

# API documentation of the workspace, without its dependencies.
doc:
    cargo doc --workspace --no-deps --open

# The Python side: golden vectors, clients and peers run in this environment.
venv:
    python3 -m venv .venv
    .venv/bin/pip install -r scripts/requirements.txt

# Test data from its sources: corpus, golden vectors, tiny models.
golden: venv
    .venv/bin/python scripts/golden/corpus.py
    .venv/bin/python scripts/golden/minilm.py
    .venv/bin/python scripts/golden/tiny.py

# Speed on the CPU beside ONNX Runtime and sentence-transformers.
bench-cpu: venv
    cargo build --release
    .venv/bin/python scripts/bench/cpu_peers.py --vecmill target/release/vecmill

# Memory over 10,000 requests, and start-up time.
soak: venv
    cargo build --release
    .venv/bin/python scripts/bench/soak_memory.py --vecmill target/release/vecmill

# Real clients and hostile ones against a server that runs on port 3000.
clients: venv
    python3 -m venv .venv-clients
    .venv-clients/bin/pip install -r scripts/clients/requirements.txt
    .venv-clients/bin/python scripts/clients/other_clients.py --base-url http://127.0.0.1:3000
    .venv/bin/python scripts/clients/openai_client.py --base-url http://127.0.0.1:3000/v1
    .venv/bin/python scripts/clients/hostile.py --base-url http://127.0.0.1:3000

# Overload, slow and vanishing clients, signals, full disks, dead logs, containers, hostile models: one table.
# `model` is a folder with all-MiniLM-L6-v2.
chaos model out="target/chaos":
    cargo build --release -p vecmill-cli
    mkdir -p {{out}}
    python3 scripts/chaos/chaos.py --vecmill target/release/vecmill --model {{quote(model)}} --markdown {{out}}/chaos.md --json {{out}}/chaos.json

# System calls that fail, each in turn, in a start, requests and a stop. Needs strace.
inject:
    cargo build -p vecmill-cli
    python3 scripts/chaos/inject.py

# Tests that need a CUDA device.
gpu-test:
    cargo test --release -p vecmill-backend-cuda -- --ignored
    cargo test --release -p vecmill-engine --test faults -- --ignored

# One archive that checks vecmill on a GPU machine without Rust; with a model's folder, the model too.
gpu-bundle model="":
    bash scripts/gpu-bundle.sh {{quote(model)}}

# The memory pool beside other allocators on a GPU: latency, replays, ten minutes of pressure. Needs PyTorch.
bench-memory out="target/bench-memory":
    cargo build --release -p vecmill-bench
    bash scripts/bench/memory_gpu.sh target/release/vecmill-bench {{out}}
    bash scripts/bench/memory_pressure.sh target/release/vecmill-bench {{out}}

# The encoder on a GPU beside its peers, and the server under load. `model` is a folder with all-MiniLM-L6-v2. Needs PyTorch.
bench-gpu model out="target/bench-gpu":
    cargo build --release -p vecmill-bench -p vecmill-cli
    python3 scripts/bench/gpu_models.py target/gpu-models --tokenizer {{model}}
    bash scripts/bench/gpu_encoder.sh target/release/vecmill-bench target/release/vecmill target/gpu-models {{out}}
    python3 scripts/bench/gpu_accuracy.py target/release/vecmill {{model}} --flags "--device cuda:0 --dtype float16" --out {{out}}/results.jsonl
