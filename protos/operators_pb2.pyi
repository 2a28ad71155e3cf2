from google.protobuf import timestamp_pb2 as _timestamp_pb2
from protos import maskvote_pb2 as _maskvote_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EntryMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENTRY_METHOD_UNSPECIFIED: _ClassVar[EntryMethod]
    ENTRY_METHOD_SMSP: _ClassVar[EntryMethod]
    ENTRY_METHOD_MVP: _ClassVar[EntryMethod]
    ENTRY_METHOD_ITERATIVE: _ClassVar[EntryMethod]
ENTRY_METHOD_UNSPECIFIED: EntryMethod
ENTRY_METHOD_SMSP: EntryMethod
ENTRY_METHOD_MVP: EntryMethod
ENTRY_METHOD_ITERATIVE: EntryMethod

class GetStructureRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListEntriesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ShowEntryRequest(_message.Message):
    __slots__ = ("entry",)
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    entry: str
    def __init__(self, entry: _Optional[str] = ...) -> None: ...

class RemoveEntryRequest(_message.Message):
    __slots__ = ("entry", "reason")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    entry: str
    reason: str
    def __init__(self, entry: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RestoreEntryRequest(_message.Message):
    __slots__ = ("entry", "reason")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    entry: str
    reason: str
    def __init__(self, entry: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ExportEntriesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ImportEntriesResponse(_message.Message):
    __slots__ = ("added", "present")
    ADDED_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    added: int
    present: int
    def __init__(self, added: _Optional[int] = ..., present: _Optional[int] = ...) -> None: ...

class GetStatisticsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Entry(_message.Message):
    __slots__ = ("facts", "signature", "mask")
    FACTS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    facts: EntryFacts
    signature: _maskvote_pb2.Signature
    mask: _maskvote_pb2.Mask
    def __init__(self, facts: _Optional[_Union[EntryFacts, _Mapping]] = ..., signature: _Optional[_Union[_maskvote_pb2.Signature, _Mapping]] = ..., mask: _Optional[_Union[_maskvote_pb2.Mask, _Mapping]] = ...) -> None: ...

class EntryFacts(_message.Message):
    __slots__ = ("entry", "position", "method", "contributor", "recorded", "classes", "images", "units", "parameters", "accuracy_before", "accuracy_after", "iterations", "neighbours", "removed")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTOR_FIELD_NUMBER: _ClassVar[int]
    RECORDED_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_BEFORE_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_AFTER_FIELD_NUMBER: _ClassVar[int]
    ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    entry: str
    position: int
    method: EntryMethod
    contributor: str
    recorded: _timestamp_pb2.Timestamp
    classes: int
    images: int
    units: int
    parameters: int
    accuracy_before: float
    accuracy_after: float
    iterations: int
    neighbours: _containers.RepeatedCompositeFieldContainer[_maskvote_pb2.Neighbour]
    removed: Removal
    def __init__(self, entry: _Optional[str] = ..., position: _Optional[int] = ..., method: _Optional[_Union[EntryMethod, str]] = ..., contributor: _Optional[str] = ..., recorded: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., classes: _Optional[int] = ..., images: _Optional[int] = ..., units: _Optional[int] = ..., parameters: _Optional[int] = ..., accuracy_before: _Optional[float] = ..., accuracy_after: _Optional[float] = ..., iterations: _Optional[int] = ..., neighbours: _Optional[_Iterable[_Union[_maskvote_pb2.Neighbour, _Mapping]]] = ..., removed: _Optional[_Union[Removal, _Mapping]] = ...) -> None: ...

class Removal(_message.Message):
    __slots__ = ("at", "by", "reason")
    AT_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    by: str
    reason: str
    def __init__(self, at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., by: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Statistics(_message.Message):
    __slots__ = ("voting", "removed", "unanswered", "by_method", "by_contributor", "accuracy_before", "accuracy_after", "file_bytes")
    class ByMethodEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class ByContributorEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    VOTING_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    UNANSWERED_FIELD_NUMBER: _ClassVar[int]
    BY_METHOD_FIELD_NUMBER: _ClassVar[int]
    BY_CONTRIBUTOR_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_BEFORE_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_AFTER_FIELD_NUMBER: _ClassVar[int]
    FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    voting: int
    removed: int
    unanswered: int
    by_method: _containers.ScalarMap[str, int]
    by_contributor: _containers.ScalarMap[str, int]
    accuracy_before: float
    accuracy_after: float
    file_bytes: int
    def __init__(self, voting: _Optional[int] = ..., removed: _Optional[int] = ..., unanswered: _Optional[int] = ..., by_method: _Optional[_Mapping[str, int]] = ..., by_contributor: _Optional[_Mapping[str, int]] = ..., accuracy_before: _Optional[float] = ..., accuracy_after: _Optional[float] = ..., file_bytes: _Optional[int] = ...) -> None: ...
