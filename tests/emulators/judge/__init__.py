"""An OpenAI-compatible chat endpoint to test against: on a loopback port, called by the real HTTP client.

    with JudgeEmulator() as judge:
        judge.key = "sk-secret"
        judge.conduct = prefer("Another")
        judge.faults = [Fault(status=429, headers={"Retry-After": "7"})]
        ... judge.url

What is there: `POST /v1/chat/completions` with `usage`, keys, one model, faults in the order of requests. What is not
there: streams, tools, other paths.
"""

from tests.emulators.judge.server import Fault, JudgeEmulator, Seen, always, fair, prefer

__all__ = ["Fault", "JudgeEmulator", "Seen", "always", "fair", "prefer"]
