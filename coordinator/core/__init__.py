"""The pure core: inputs go in, effects come out, nothing is performed here.

    Input -> Coordinator.step(input, now) -> [Effect, ...]

Guarantees: no asyncio, grpc, time, random, protobuf or files in this package (a test checks it);
time and randomness are arguments, the next wake-up is a return value; the same inputs give the
same effects.
"""
