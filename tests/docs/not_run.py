"""Commands of README and docs that `test_run` does not run, each with the reason.

Those of `trainhop` must still parse, and a target of `make` must exist.
"""

MINUTES = "sets up an environment, or trains for minutes; CI runs it"
PROBES = "trains in probes for minutes; tests/cli/test_checks.py runs it against emulated services"
KAGGLE = "waits for a GPU of Kaggle; tests/e2e/test_kaggle.py trains on an emulated one"
INDEX = "installs a client from a package index; tests/e2e/test_colab.py uses it where it is installed"
LATEST = "asks the package index for the versions of today"
PERSON = "waits for a person's answer; tests/cli/test_stores.py gives one"
EVALUATION = "needs the answers of an evaluation; tests/cli/test_compare.py compares some"
JUDGE = "needs a judge model and the answers of an evaluation; tests/cli/test_judge.py has both"
JUDGE_HERE = "loads a judge model; tests/worker/test_judge.py and tests/cli/test_evaluations.py use small ones"
ANSWERS = "trains and answers for minutes; tests/e2e/test_evaluation.py does it"
HUB = "reads items from the hub; tests/services/test_benchmarks.py reads some from an emulated one"
TRUST = "trains and answers for minutes; tests/http/test_trust_demo.py runs the parts without training"
EXPORT = "needs a tokenizer that llama.cpp has, or a folder; tests/cli/test_export.py has both"
CHAT = "waits for questions, or needs a model; tests/chat asks small ones, and an emulated address"
RESTORED = "takes over from the page's own server; tests/cli/test_backups.py starts a restored one"
DOCKER = "needs the image; CI builds it"
VOTES = "needs an evaluation that people have voted on; tests/http/test_models.py has one"
INDEX_MCP = "installs a package from an index; CI installs it with the others"
JOINED = "works for a server until it leaves; tests/e2e/test_joined_machine.py has a machine that joins and leaves"
JOINED_NAME = "needs a machine that has joined; tests/http/test_joined_machines.py has one"
AGENTS = "serves agents until it is stopped; tests/mcp/test_transports.py calls its tools"
TRACKERS = "needs a tracker's library, or a curve that was written; tests/http/test_trackers.py has both"

NOT_RUN = {
    "trainhop trackers set wandb --key-file key.txt --project TEAM/trail-guide": TRACKERS,
    "trainhop trackers set mlflow --url https://mlflow.example.org --key-file key.txt": TRACKERS,
    "trainhop trackers set trackio --url OWNER/SPACE --key-file key.txt": TRACKERS,
    "trainhop trackers file JOB --out tensorboard": TRACKERS,
    "trainhop accounts code": JOINED_NAME,
    "trainhop accounts code --shared": JOINED_NAME,
    "trainhop accounts drain NAME": JOINED_NAME,
    "trainhop accounts resume NAME": JOINED_NAME,
    "trainhop join URL CODE": JOINED,
    "trainhop join URL CODE --systemd": JOINED,
    "trainhop leave --drain": JOINED,
    "trainhop leave": JOINED,
    "pip install 'trainhop[mcp]'": INDEX_MCP,
    "trainhop mcp --http 127.0.0.1:8643": AGENTS,
    "trainhop evaluate JOB": ANSWERS,
    "trainhop evaluate JOB --prompts prompts.jsonl --max-new-tokens 512": ANSWERS,
    "trainhop evaluate JOB --tasks tasks.jsonl": ANSWERS,
    "trainhop evaluate JOB --benchmark arc_easy --benchmark gsm8k": HUB,
    "trainhop evaluate JOB --judge mistralai/Mistral-7B-Instruct-v0.3": JUDGE_HERE,
    "trainhop evaluate JOB --checkpoint 120": ANSWERS,
    "trainhop show EVALUATION": ANSWERS,
    "trainhop export trail-guide --format gguf": EXPORT,
    "trainhop export JOB --format gguf --type q8_0 --out trail-guide-gguf": EXPORT,
    "trainhop export my-adapter --format merged --base models/base --out merged": EXPORT,
    "trainhop chat JOB": CHAT,
    'trainhop chat my-adapter --base models/base --system "Answer in one sentence."': CHAT,
    'trainhop chat JOB --only adapter --prompt "Where does the trail begin?" --temperature 0.7 --json': CHAT,
    "trainhop chat JOB --on-machine": CHAT,
    'trainhop chat JOB --on-machine --minutes 60 --prompt "Where does the trail begin?"': CHAT,
    "trainhop chat --endpoint http://localhost:8000/v1 --model trail-guide --base-model ORG/BASE": CHAT,
    "trainhop chat --endpoint http://localhost:8080/v1 --lora 0": CHAT,
    "trainhop up --data-dir /srv/restored --moved": RESTORED,
    "docker compose exec server trainhop backup /tmp/trainhop.tar": DOCKER,
    "docker compose cp server:/tmp/trainhop.tar .": DOCKER,
    "make demo": MINUTES,
    "make test": MINUTES,
    "make setup": MINUTES,
    "make lint": MINUTES,
    "make docs": MINUTES,
    "make images": MINUTES,
    "make lock": LATEST,
    "make audit": LATEST,
    "trainhop models promote trail-guide JOB": VOTES,
    'trainhop compare start JOB --plan standard --question "Which answer is better?"': EVALUATION,
    "trainhop compare start JOB --margin 0.1 --gain tasks": EVALUATION,
    "trainhop compare link JOB NAME": EVALUATION,
    "trainhop compare status JOB": EVALUATION,
    "trainhop compare close JOB": EVALUATION,
    "trainhop compare export JOB --format csv --out votes.csv": EVALUATION,
    "trainhop judge add NAME https://api.example.org/v1 MODEL --key-file key.txt": JUDGE,
    "trainhop judge consent NAME": JUDGE,
    "trainhop judge start JOB NAME --max-tokens 500000": JUDGE,
    "trainhop judge status JOB": JUDGE,
    "trainhop judge resume JOB --max-tokens 1000000": JUDGE,
    "trainhop judge pause JOB": JUDGE,
    "trainhop judge ls": JUDGE,
    "trainhop judge key NAME key.txt": JUDGE,
    "trainhop judge rm NAME": JUDGE,
    "trainhop demo": MINUTES,
    "trainhop demo --sandbox": MINUTES,
    "trainhop demo --trust": TRUST,
    "trainhop doctor --kaggle": PROBES,
    "trainhop doctor --kaggle --gpu": PROBES,
    "trainhop doctor --kaggle --gpu --yes": PROBES,
    "trainhop doctor --kaggle --out report.json": PROBES,
    "trainhop doctor --colab": PROBES,
    "trainhop doctor --colab --answer answer.txt --out report.json": PROBES,
    "trainhop submit examples/demo.yaml --watch --set 'placement.providers=[kaggle]'": KAGGLE,
    "trainhop submit examples/demo.yaml --set 'placement.providers=[kaggle]'": KAGGLE,
    "python3.12 -m venv colab && colab/bin/pip install 'google-colab-cli>=0.7.5,<0.8' && colab/bin/colab usage": INDEX,
    "TRAINHOP_COLAB_PYTHON=$PWD/colab/bin/python trainhop up": INDEX,
    "trainhop accounts add colab --set mode=cli --set accelerator=T4 "
    "--token-file ~/.config/colab-cli/token.json": INDEX,
    "trainhop store use drive --client-secrets client.json --no-browser": PERSON,
}
