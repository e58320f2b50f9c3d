"""A standby: a copy of a private PostgreSQL node that follows it and can take its place."""

from collections.abc import Mapping
from typing import Self

from tests.postgres import PostgresNode
from tests.postgres_programs import run
from tests.waiting import LOOK_SECONDS, eventually, patience

PATIENCE_SECONDS = 60
STREAMING = "SELECT sync_state FROM pg_stat_replication WHERE application_name = $1"


class PostgresStandby(PostgresNode):
    """A node that streams from another, which must be running when this one is first started."""

    def __init__(
        self,
        primary: PostgresNode,
        settings: Mapping[str, object] | None = None,
        *,
        synchronous: bool = False,
        disk: str | None = None,
    ) -> None:
        """Store whom it follows; if synchronous, the primary's commits wait until it has them.

        The setting `recovery_min_apply_delay`, such as `1h`, delays what its readers see.
        """
        super().__init__(settings, disk=disk)
        self._primary = primary
        self._is_synchronous = synchronous

    async def __aenter__(self) -> Self:
        """Copy the primary, start, and return when it follows, or leave nothing behind."""
        await super().__aenter__()
        try:
            await self._until_following("async")
            if self._is_synchronous:
                name = f"""'"{self.name}"'"""
                await self._primary.query(f"ALTER SYSTEM SET synchronous_standby_names = {name}")
                await self._primary.query("SELECT pg_reload_conf()")
                await self._until_following("sync")
        except BaseException:
            self._remove()
            raise
        return self

    async def promote(self) -> None:
        """Make it a primary, and return when it accepts writes."""
        await self.query("SELECT pg_promote(true, $1)", int(patience()))

    async def until_replayed(self) -> None:
        """Wait until its readers see all that the primary has committed so far."""
        [(position,)] = await self._primary.query("SELECT pg_current_wal_flush_lsn()")

        async def has_replayed() -> bool:
            [(reached,)] = await self.query("SELECT pg_last_wal_replay_lsn() >= $1", position)
            return bool(reached)

        await eventually(has_replayed, PATIENCE_SECONDS, LOOK_SECONDS)

    def _make_data(self) -> None:
        primary = self._primary
        connection = f"host={primary.folder} port={primary.port} user=postgres"
        options = (f"--pgdata={self.folder / 'data'}", "--checkpoint=fast", "--no-sync")
        copying = ("pg_basebackup", *options, f"--dbname={connection}")
        run(self.folder, *copying, inside=self._inside)
        (self.data / "standby.signal").touch()
        # What operators changed on the primary while it ran is about the primary.
        (self.data / "postgresql.auto.conf").write_text("")
        self._settings["primary_conninfo"] = connection

    async def _until_following(self, state: str) -> None:
        async def follows() -> bool:
            return await self._primary.query(STREAMING, self.name) == [(state,)]

        await eventually(follows, PATIENCE_SECONDS, LOOK_SECONDS)
