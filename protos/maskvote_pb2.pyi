from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Method(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METHOD_UNSPECIFIED: _ClassVar[Method]
    METHOD_SMSP: _ClassVar[Method]
    METHOD_MVP: _ClassVar[Method]

class Origin(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORIGIN_UNSPECIFIED: _ClassVar[Origin]
    ORIGIN_VOTE: _ClassVar[Origin]
    ORIGIN_IMPORTANCE: _ClassVar[Origin]
METHOD_UNSPECIFIED: Method
METHOD_SMSP: Method
METHOD_MVP: Method
ORIGIN_UNSPECIFIED: Origin
ORIGIN_VOTE: Origin
ORIGIN_IMPORTANCE: Origin

class Offer(_message.Message):
    __slots__ = ("structure", "probe_digest", "probe")
    STRUCTURE_FIELD_NUMBER: _ClassVar[int]
    PROBE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    structure: Structure
    probe_digest: bytes
    probe: Payload
    def __init__(self, structure: _Optional[_Union[Structure, _Mapping]] = ..., probe_digest: _Optional[bytes] = ..., probe: _Optional[_Union[Payload, _Mapping]] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("size_bytes", "sha256")
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    size_bytes: int
    sha256: bytes
    def __init__(self, size_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class Structure(_message.Message):
    __slots__ = ("digest", "json_size_bytes", "json_zlib")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    JSON_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    JSON_ZLIB_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    json_size_bytes: int
    json_zlib: bytes
    def __init__(self, digest: _Optional[bytes] = ..., json_size_bytes: _Optional[int] = ..., json_zlib: _Optional[bytes] = ...) -> None: ...

class Mask(_message.Message):
    __slots__ = ("structure_digest", "kept")
    STRUCTURE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    structure_digest: bytes
    kept: bytes
    def __init__(self, structure_digest: _Optional[bytes] = ..., kept: _Optional[bytes] = ...) -> None: ...

class TaskDescription(_message.Message):
    __slots__ = ("request_id", "signature", "budget", "method")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    signature: Signature
    budget: Budget
    method: Method
    def __init__(self, request_id: _Optional[bytes] = ..., signature: _Optional[_Union[Signature, _Mapping]] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., method: _Optional[_Union[Method, str]] = ...) -> None: ...

class Signature(_message.Message):
    __slots__ = ("probe_digest", "width", "counts", "means")
    PROBE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    MEANS_FIELD_NUMBER: _ClassVar[int]
    probe_digest: bytes
    width: int
    counts: _containers.RepeatedScalarFieldContainer[int]
    means: bytes
    def __init__(self, probe_digest: _Optional[bytes] = ..., width: _Optional[int] = ..., counts: _Optional[_Iterable[int]] = ..., means: _Optional[bytes] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("keep_ratio", "parameters", "flops", "weight_bytes", "activation_bytes", "latency_ms", "latency", "multiple", "headroom", "wait_seconds")
    KEEP_RATIO_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    FLOPS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_BYTES_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    MULTIPLE_FIELD_NUMBER: _ClassVar[int]
    HEADROOM_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    keep_ratio: float
    parameters: int
    flops: int
    weight_bytes: int
    activation_bytes: int
    latency_ms: float
    latency: LatencyTable
    multiple: int
    headroom: float
    wait_seconds: float
    def __init__(self, keep_ratio: _Optional[float] = ..., parameters: _Optional[int] = ..., flops: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., activation_bytes: _Optional[int] = ..., latency_ms: _Optional[float] = ..., latency: _Optional[_Union[LatencyTable, _Mapping]] = ..., multiple: _Optional[int] = ..., headroom: _Optional[float] = ..., wait_seconds: _Optional[float] = ...) -> None: ...

class LatencyTable(_message.Message):
    __slots__ = ("structure", "flops", "milliseconds")
    STRUCTURE_FIELD_NUMBER: _ClassVar[int]
    FLOPS_FIELD_NUMBER: _ClassVar[int]
    MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    structure: bytes
    flops: _containers.RepeatedScalarFieldContainer[int]
    milliseconds: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, structure: _Optional[bytes] = ..., flops: _Optional[_Iterable[int]] = ..., milliseconds: _Optional[_Iterable[float]] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("request_id", "method", "origin", "mask", "target", "rounds", "neighbours", "subnetwork", "classes")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    SUBNETWORK_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    method: Method
    origin: Origin
    mask: Mask
    target: _containers.RepeatedScalarFieldContainer[int]
    rounds: int
    neighbours: _containers.RepeatedCompositeFieldContainer[Neighbour]
    subnetwork: Payload
    classes: int
    def __init__(self, request_id: _Optional[bytes] = ..., method: _Optional[_Union[Method, str]] = ..., origin: _Optional[_Union[Origin, str]] = ..., mask: _Optional[_Union[Mask, _Mapping]] = ..., target: _Optional[_Iterable[int]] = ..., rounds: _Optional[int] = ..., neighbours: _Optional[_Iterable[_Union[Neighbour, _Mapping]]] = ..., subnetwork: _Optional[_Union[Payload, _Mapping]] = ..., classes: _Optional[int] = ...) -> None: ...

class Neighbour(_message.Message):
    __slots__ = ("entry", "similarity")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    entry: str
    similarity: float
    def __init__(self, entry: _Optional[str] = ..., similarity: _Optional[float] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("request_id", "mask", "accuracy_before", "accuracy_after", "iterations")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_BEFORE_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_AFTER_FIELD_NUMBER: _ClassVar[int]
    ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    mask: Mask
    accuracy_before: float
    accuracy_after: float
    iterations: int
    def __init__(self, request_id: _Optional[bytes] = ..., mask: _Optional[_Union[Mask, _Mapping]] = ..., accuracy_before: _Optional[float] = ..., accuracy_after: _Optional[float] = ..., iterations: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("entry", "entries")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entry: str
    entries: int
    def __init__(self, entry: _Optional[str] = ..., entries: _Optional[int] = ...) -> None: ...
