"""cvfs-publisher serve."""

import click

from publisher.cli.common import store_argument


@click.command("serve")
@store_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, type=click.IntRange(0, 65535), show_default=True, help="0: any free one.")
@click.option("--log", "is_logging", is_flag=True, help="A line on stderr for each request.")
def command(store: str, host: str, port: int, is_logging: bool) -> None:
    """Serve STORE over HTTP until interrupted. In production any web server will do.

    \b
    Example:
      cvfs-publisher serve /srv/software --port 8080
    """
    from publisher.server.http_server import serve

    log = (lambda line: click.echo(line, err=True)) if is_logging else None
    serve(store, host, port, log=log, announce=click.echo)
