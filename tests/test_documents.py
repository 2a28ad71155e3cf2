"""What runs the guides: it would notice a guide that is wrong, and leaves nothing running."""

import re
import socket
import time

import pytest
from documents import Block, Terminal, free_ports, read_blocks, with_free_ports

DOCUMENT = """
# Title

```sh
export GREETING=hello
mkdir inside
cd inside
```

## The server

<!-- keeps running: server; ready: at (your|my) service -->
```sh
echo at your service on 7070, not on 17070
sleep 1000
```

```
hello
```

<!-- not run: it is only said -->
```sh
exit 1
```

<!-- fails: no such -->
```sh
echo "no such thing" >&2
false | cat
```
"""


@pytest.fixture
def blocks(tmp_path) -> list[Block]:
    (tmp_path / "guide.md").write_text(DOCUMENT)
    return read_blocks(tmp_path / "guide.md")


@pytest.fixture
def terminal(tmp_path):
    with Terminal(tmp_path / "place") as terminal:
        yield terminal


def test_blocks_are_read_with_their_marks_headings_and_lines(blocks):
    prepare, server, refused = blocks
    assert prepare == Block(
        "export GREETING=hello\nmkdir inside\ncd inside\n", section="", place="guide.md:4"
    )
    assert (server.keeps_running, server.ready) == ("server", "at (your|my) service")
    assert (refused.fails, refused.section) == ("no such", "The server")


@pytest.mark.parametrize("mark", ["ready: now", "keeps running: it", "fail: x", "fails", "fails: "])
def test_a_wrong_mark_is_refused_and_said_where(mark, tmp_path):
    (tmp_path / "guide.md").write_text(f"<!-- {mark} -->\n```sh\ntrue\n```\n")
    with pytest.raises(ValueError, match=rf"guide.md:2 is marked '{mark}'"):
        read_blocks(tmp_path / "guide.md")


def test_a_port_is_replaced_by_the_same_free_one_everywhere(blocks):
    text = "\n".join(block.commands for block in with_free_ports([*blocks, Block("call 7070")], 7070))
    port = re.findall(r"call (\d+)", text)[0]
    assert f"on {port}, not on 17070" in text
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", int(port)))
    assert len(set(free_ports(20))) == 20


def test_a_document_is_followed_in_one_terminal(blocks, terminal, tmp_path):
    for block in blocks:
        terminal.follow(block)
    assert terminal.follow(Block("echo $GREETING; pwd")) == f"hello\n{tmp_path / 'place' / 'inside'}\n"
    assert terminal.said("server") == "at your service on 7070, not on 17070\n"


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (
            Block("echo before; false; echo after", place="guide.md:7"),
            r"guide.md:7 ended with 1(.|\n)*before",
        ),
        (Block("echo $UNKNOWN"), "UNKNOWN: unbound variable"),
        (Block("false | cat"), "ended with 1"),
        (Block("true", fails="no"), "ended with 0"),
        (Block("echo yes; false", fails="no"), "ended with 1"),
        (Block("echo gone", keeps_running="it", ready="never"), r"ended with 0(.|\n)*gone"),
    ],
)
def test_what_does_not_do_as_it_should_is_told_with_what_it_said(block, says, terminal):
    with pytest.raises(AssertionError, match=says) as told:
        terminal.follow(block)
    assert "after" not in str(told.value).replace("echo after", "")


def test_servers_end_with_their_terminal_their_namesake_or_when_killed(tmp_path):
    (port,) = free_ports(1)
    listens = Block(f"python3 -um http.server --bind 127.0.0.1 {port}", "server", "Serving HTTP")

    def listening() -> bool:
        with socket.socket() as caller:
            return caller.connect_ex(("127.0.0.1", port)) == 0

    def ends() -> bool:
        """Whether it does soon: a process that is killed still has to let go of its port."""
        deadline = time.monotonic() + 10
        while listening() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not listening()

    with Terminal(tmp_path / "place") as terminal:
        terminal.follow(listens)
        assert listening()
        terminal.follow(listens)
        terminal.kill("server")
        assert ends()
        terminal.follow(listens)
    assert ends()
