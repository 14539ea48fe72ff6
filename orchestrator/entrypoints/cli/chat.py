"""`trainhop chat`: questions to an adapter and to its base model, answered side by side."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from orchestrator.entrypoints.cli.client import CommandError, Exit
from orchestrator.entrypoints.cli.output import say
from worker.shared.chat_limits import ANSWER_TOKENS, LEAST_MINUTES, MAX_ANSWER_TOKENS, MAX_MINUTES, MINUTES

app = typer.Typer()


class Only(StrEnum):
    """One of the two models."""

    ADAPTER = "adapter"
    BASE = "base"


@app.command(rich_help_panel="Records")
def chat(
    context: typer.Context,
    source: Annotated[
        str | None, typer.Argument(metavar="[JOB|FOLDER]", help="A finished job, or a PEFT folder.", show_default=False)
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="The base model's folder or id. Default: the one that the adapter names."),
    ] = None,
    only: Annotated[Only | None, typer.Option(help="Ask only one of the two models.")] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="One question. Without it, questions are read until the end.")
    ] = None,
    system: Annotated[str, typer.Option(metavar="TEXT", help="A system text before the conversation.")] = "",
    max_tokens: Annotated[
        int, typer.Option(min=1, max=MAX_ANSWER_TOKENS, help="Tokens of an answer at most.")
    ] = ANSWER_TOKENS,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 takes the most probable token.")] = 0.0,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask at this OpenAI-compatible address instead of loading models.")
    ] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="The adapter's model name at the address.")] = "",
    base_model: Annotated[str, typer.Option(metavar="NAME", help="The base model's name at the address.")] = "",
    lora: Annotated[
        int | None,
        typer.Option(min=0, max=99, metavar="ID", help="llama-server's number of the adapter, off for the base."),
    ] = None,
    ask_key: Annotated[
        bool, typer.Option("--ask-key", help="Ask for the address's key. Without it: TRAINHOP_CHAT_KEY, or no key.")
    ] = False,
    on_machine: Annotated[
        bool, typer.Option("--on-machine", help="Ask in a session on a machine of your accounts. It is a job.")
    ] = False,
    minutes: Annotated[
        int | None,
        typer.Option(
            min=LEAST_MINUTES, max=MAX_MINUTES, help=f"Minutes of that session, its start included. Default: {MINUTES}."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each question.")] = False,
) -> None:
    """Chat with an adapter and its base model side by side: on this computer, on a machine, or at an address."""
    _refuse_two_places(on_machine=on_machine, base=base, endpoint=endpoint, minutes=minutes)
    if endpoint is None:
        _refuse_without_address(source, is_about_address=bool(model or base_model or lora is not None or ask_key))
    elif source is not None or base is not None:
        raise CommandError(Exit.USAGE, "An address has its own models. Leave job, folder and --base out.")
    elif not base_model and lora is None:
        only = _only_adapter(only)
    from orchestrator.entrypoints.cli import conversation

    settings = conversation.Settings(
        system=system, only=only, max_tokens=max_tokens, temperature=temperature, as_json=as_json
    )
    if endpoint is not None:
        there = conversation.Endpoint(url=endpoint, model=model, base_model=base_model, lora=lora, asks_for_key=ask_key)
        conversation.converse(conversation.at_an_address(there), settings, prompt)
    elif source is not None and on_machine:
        conversation.converse(conversation.on_a_machine(context, source, minutes or MINUTES), settings, prompt)
    elif source is not None:
        with conversation.on_this_computer(context, source, base) as ask:
            conversation.converse(ask, settings, prompt)


def _refuse_two_places(*, on_machine: bool, base: str | None, endpoint: str | None, minutes: int | None) -> None:
    if not on_machine and minutes is not None:
        raise CommandError(Exit.USAGE, "--minutes needs --on-machine.")
    if on_machine and endpoint is not None:
        raise CommandError(Exit.USAGE, "Choose one of --on-machine and --endpoint.")
    if on_machine and base is not None:
        raise CommandError(Exit.USAGE, "--on-machine takes the base model that the job names. Leave --base out.")


def _refuse_without_address(source: str | None, *, is_about_address: bool) -> None:
    if source is None:
        raise CommandError(Exit.USAGE, "Name a job or a PEFT folder, or an address with --endpoint.")
    if is_about_address:
        raise CommandError(Exit.USAGE, "--model, --base-model, --lora and --ask-key need --endpoint.")


def _only_adapter(only: Only | None) -> Only:
    if only is Only.BASE:
        raise CommandError(Exit.USAGE, "Name the base model at the address with --base-model.")
    if only is None:
        say("Only the adapter will answer. For the base model too: --base-model NAME, or --lora ID with llama-server.")
    return Only.ADAPTER
