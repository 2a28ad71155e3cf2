"""A Flower Grid that runs a ClientApp in this process: a whole run without Ray, ports or waiting."""

from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

Mischief = Callable[[Message, Message], Message | None]
"""Request and reply -> the reply that arrives; None: it is lost."""


class InProcessGrid(Grid):
    """Nodes by id with their node configuration; each answers within `push_messages`."""

    def __init__(
        self,
        client_app: ClientApp,
        nodes: Mapping[int, Mapping[str, Any]],
        run_config: Mapping[str, Any] | None = None,
        mischief: Mapping[int, Mischief] | None = None,
        unreachable: Mapping[int, list[str]] | None = None,
    ) -> None:
        self.contexts = {
            node: Context(1, node, dict(config), RecordDict(), dict(run_config or {}))
            for node, config in nodes.items()
        }
        self.pushed: list[str] = []
        self.most_in_flight = 0
        self._app = client_app
        self._mischief = mischief or {}
        self._unreachable = unreachable or {}
        self._replies: dict[str, Message] = {}

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError

    def get_node_ids(self):
        return list(self.contexts)

    def push_messages(self, messages):
        (message,) = messages
        node = message.metadata.dst_node_id
        if node in self._unreachable:
            return self._unreachable[node]
        message_id = uuid4().hex
        message.metadata.__dict__["_message_id"] = message_id
        reply: Message | None
        try:
            reply = self._app(message, self.contexts[node])
        except Exception as error:  # as a SuperNode does
            reply = Message(
                Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error)}:<{error!r}>"),
                reply_to=message,
            )
        if node in self._mischief:
            reply = self._mischief[node](message, reply)
        if reply is not None:
            self._replies[message_id] = reply
        self.pushed.append(f"{node} {message.metadata.message_type}")
        self.most_in_flight = max(self.most_in_flight, len(self._replies))
        return [message_id]

    def pull_messages(self, message_ids):
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]
