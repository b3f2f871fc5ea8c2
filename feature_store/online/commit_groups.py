"""Commits of commands (synchronous)."""

from __future__ import annotations

from collections.abc import Sequence

from feature_store.online.command_client import CommandClient
from feature_store.online.commit import (
    SCRIPT,
    CommitResult,
    Group,
    cluster_commands,
    cluster_result,
    commit_result,
    keys_and_arguments,
)


def commit_groups(client: CommandClient, groups: Sequence[Group]) -> CommitResult:
    """Write groups, each only if no other commit changed its values first; in a cluster key by key.

    Raises:
        StoreUnavailableError: Redis does not answer.
    """
    if client.is_cluster:
        pipeline = client.redis.pipeline()
        for command, *arguments in cluster_commands(groups):
            pipeline.execute_command(command.decode(), *arguments)
        return cluster_result(groups, client.call(pipeline.execute))
    keys, arguments = keys_and_arguments(groups)
    return commit_result(client.call(client.redis.register_script(SCRIPT), keys, [*arguments, client.run()]))
