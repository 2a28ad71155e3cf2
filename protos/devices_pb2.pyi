from protos import maskvote_pb2 as _maskvote_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetOfferRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetOfferResponse(_message.Message):
    __slots__ = ("offer", "model", "weights_digest", "budgets", "limits", "server_version")
    OFFER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    offer: _maskvote_pb2.Offer
    model: str
    weights_digest: bytes
    budgets: BudgetLimits
    limits: Limits
    server_version: str
    def __init__(self, offer: _Optional[_Union[_maskvote_pb2.Offer, _Mapping]] = ..., model: _Optional[str] = ..., weights_digest: _Optional[bytes] = ..., budgets: _Optional[_Union[BudgetLimits, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., server_version: _Optional[str] = ...) -> None: ...

class BudgetLimits(_message.Message):
    __slots__ = ("keep_ratio", "parameters", "parameters_per_class")
    KEEP_RATIO_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_PER_CLASS_FIELD_NUMBER: _ClassVar[int]
    keep_ratio: float
    parameters: int
    parameters_per_class: int
    def __init__(self, keep_ratio: _Optional[float] = ..., parameters: _Optional[int] = ..., parameters_per_class: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("message_bytes", "calls_per_minute", "burst", "concurrent_calls", "receive_seconds", "bytes_per_minute")
    MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CALLS_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    BURST_FIELD_NUMBER: _ClassVar[int]
    CONCURRENT_CALLS_FIELD_NUMBER: _ClassVar[int]
    RECEIVE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    message_bytes: int
    calls_per_minute: int
    burst: int
    concurrent_calls: int
    receive_seconds: int
    bytes_per_minute: int
    def __init__(self, message_bytes: _Optional[int] = ..., calls_per_minute: _Optional[int] = ..., burst: _Optional[int] = ..., concurrent_calls: _Optional[int] = ..., receive_seconds: _Optional[int] = ..., bytes_per_minute: _Optional[int] = ...) -> None: ...

class FetchProbeRequest(_message.Message):
    __slots__ = ("resume",)
    RESUME_FIELD_NUMBER: _ClassVar[int]
    resume: Resume
    def __init__(self, resume: _Optional[_Union[Resume, _Mapping]] = ...) -> None: ...

class FetchSubNetworkRequest(_message.Message):
    __slots__ = ("request_id", "resume")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    resume: Resume
    def __init__(self, request_id: _Optional[bytes] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("sha256", "offset")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    offset: int
    def __init__(self, sha256: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class PayloadPart(_message.Message):
    __slots__ = ("payload", "offset", "data")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    payload: _maskvote_pb2.Payload
    offset: int
    data: bytes
    def __init__(self, payload: _Optional[_Union[_maskvote_pb2.Payload, _Mapping]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...
