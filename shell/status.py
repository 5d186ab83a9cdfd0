"""Errors on the wire: XacoordError becomes google.rpc.Status with one google.rpc.ErrorInfo.

The mapping happens here and nowhere else on the server's side. A request that is no protobuf message
becomes INVALID_REQUEST, too: gRPC alone would answer UNKNOWN, which says that the outcome is not known.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from dtp import Reason, XacoordError
from shell.text import clean

DOMAIN = "xacoord"


def to_status(error: XacoordError) -> status_pb2.Status:
    """`error` as google.rpc.Status."""
    info = error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN)
    info.metadata["retryable"] = "true" if error.retryable else "false"
    info.metadata["definite"] = "true" if error.definite else "false"
    if error.gtrid:
        info.metadata["gtrid"] = clean(error.gtrid, 64)
    for key, value in error.metadata.items():
        info.metadata[key] = clean(value, 256)
    detail = any_pb2.Any()
    detail.Pack(info)
    code = grpc.StatusCode[error.status]
    return status_pb2.Status(code=code.value[0], message=clean(error.message), details=[detail])


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: XacoordError) -> NoReturn:
    """End a call with `error`."""
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details or "", status.trailing_metadata or ())
    raise AssertionError("unreachable: abort raises")


Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns XacoordError into its status, and anything unexpected into INTERNAL with a log line."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = str(handler_call_details.method)
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                _unary(handler.unary_unary, method),
                _tolerant(handler.request_deserializer),
                handler.response_serializer,
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                _stream(handler.unary_stream, method),
                _tolerant(handler.request_deserializer),
                handler.response_serializer,
            )
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                _stream(handler.stream_stream, method),
                _tolerant(handler.request_deserializer),
                _unless_serialized(handler.response_serializer),
            )
        return handler


class _Broken:
    """Stands for a request that is no message of its type."""


def _tolerant(deserialize: Any) -> Any:
    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _Broken()

    return parse


def _unless_serialized(serialize: Any) -> Any:
    """For streams whose messages are put together in their serialised form (shell.streams)."""
    return lambda message: message if isinstance(message, bytes) else serialize(message)


def _checked(request: Any) -> Any:
    """The request, or an iterator over a stream's requests, without broken ones."""
    if isinstance(request, _Broken):
        raise XacoordError(Reason.INVALID_REQUEST, "the request is not a message of the expected type")
    return _each_checked(request) if hasattr(request, "__aiter__") else request


async def _each_checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)


def _unary(inner: Any, method: str) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await inner(_checked(request), context)
        except XacoordError as error:
            await abort(context, error)
        except grpc.aio.AbortError:
            raise
        except Exception:
            await abort(context, unexpected(method))

    return call


def _stream(inner: Any, method: str) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for response in inner(_checked(request), context):
                yield response
        except XacoordError as error:
            await abort(context, error)
        except grpc.aio.AbortError:
            raise
        except Exception:
            await abort(context, unexpected(method))

    return call


def unexpected(method: str) -> XacoordError:
    """What a caller hears of an exception that nobody expected; the log has the rest."""
    structlog.get_logger().exception("unexpected error in a call", method=method)
    return XacoordError(Reason.INTERNAL, "internal error; see the daemon's log")
