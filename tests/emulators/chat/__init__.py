"""An OpenAI-compatible chat endpoint with streams, on a loopback port.

    with ChatEmulator() as chat:
        chat.key = "sk-secret"
        chat.fault = Fault(status=429)
        ... chat.url, chat.seen

What is there: `POST /v1/chat/completions` with `stream: true`, keys, the models in `models`, and llama-server's `lora`.
The answer names the model and says how strong the adapter is. What is not there: answers at once, tools, other paths.
"""

from tests.emulators.chat.server import ChatEmulator, Fault

__all__ = ["ChatEmulator", "Fault"]
