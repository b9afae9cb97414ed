"""The commands of `cvfs`. The module of one is imported when it is called, and what it needs, when it runs."""

from importlib import import_module

import click

import cvfs

_COMMANDS = {
    "mount": ("Mount a repository on a directory.", "mount_command"),
    "umount": ("Take a mount away.", "umount_command"),
    "refresh": ("Have a mount go on with the newest revision.", "refresh_command"),
    "reload": ("Have a mount served by newly installed code.", "reload_command"),
    "status": ("Show the mounts of this user.", "status_command"),
    "doctor": ("Find out what is in the way of a mount, and what to do.", "doctor_command"),
    "config": ("Show the settings that hold; configure repositories.", "config_command"),
    "ls": ("List what a repository has, without a mount.", "ls_command"),
    "cat": ("Print files of a repository, without a mount.", "cat_command"),
    "cp": ("Copy files out of a repository, without a mount.", "cp_command"),
    "export": ("Write a plain copy of a tree; resumable.", "export_command"),
    "prefetch": ("Bring trees into the cache before they are used.", "prefetch_command"),
    "cache": ("Look at the cache, check it, shrink it, keep things in it.", "cache_command"),
    "run": ("Run a command with repositories mounted for it alone; no root needed.", "run_command"),
    "setup": ("Make mount.cvfs, units and completion known to the system.", "setup_command"),
}
"""Name: what it does in one line (so that --help need not import it), and the module in this package."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        return import_module(f"cvfs.cli.{_COMMANDS[name][1]}").command  # type: ignore[no-any-return]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (line, _) in _COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: cvfs mount http://software.example.org /mnt && ls /mnt; cvfs umount /mnt",
)
@click.version_option(cvfs.__version__, prog_name="cvfs")
def cli() -> None:
    """Use software from signed, content-addressed repositories: mounted, or copied out."""
