"""The team's settings, which say what members see of each other."""

from __future__ import annotations

from orchestrator.domain.accounts import Actor, Team
from orchestrator.services.access import require_admin
from orchestrator.services.context import Context


def settings(ctx: Context) -> Team:
    """The current settings."""
    with ctx.uow() as tx:
        return tx.team.get()


def change(ctx: Context, actor: Actor, *, everyone_sees_jobs: bool) -> Team:
    """Replace the settings. Only an admin may. Actions on a job stay those of its owner and of admins."""
    require_admin(actor)
    team = Team(everyone_sees_jobs=everyone_sees_jobs)
    with ctx.uow() as tx:
        tx.team.save(team)
    return team
