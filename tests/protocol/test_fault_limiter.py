from manychar.protocol.fault_limiter import (
    BLOCKED_FOR,
    FAULTS_ALLOWED,
    FORGIVEN_AFTER,
    SENDERS_REMEMBERED,
    FaultLimiter,
)


def test_faults_now_and_then_are_forgiven() -> None:
    fault_limiter = FaultLimiter()
    for i in range(10 * FAULTS_ALLOWED):
        assert not fault_limiter.fault(b"ann", i * FORGIVEN_AFTER / FAULTS_ALLOWED)


def test_one_too_many_in_a_row_blocks_for_a_while() -> None:
    fault_limiter = FaultLimiter()
    assert not any(fault_limiter.fault(b"ann", 1.0) for _ in range(FAULTS_ALLOWED))
    assert fault_limiter.fault(b"ann", 1.0)
    assert fault_limiter.is_blocked(b"ann", 0.9 + BLOCKED_FOR)
    assert not fault_limiter.is_blocked(b"bob", 1.0)
    assert not fault_limiter.is_blocked(b"ann", 1.0 + BLOCKED_FOR)
    assert not any(fault_limiter.fault(b"ann", 2.0 + BLOCKED_FOR) for _ in range(FAULTS_ALLOWED))
    assert fault_limiter.fault(b"ann", 2.0 + BLOCKED_FOR)


def test_what_is_remembered_is_bounded() -> None:
    fault_limiter = FaultLimiter()
    for _ in range(FAULTS_ALLOWED + 1):
        fault_limiter.fault(b"ann", 0.0)
    for i in range(SENDERS_REMEMBERED - 1):
        fault_limiter.fault(str(i).encode(), 0.0)
    assert fault_limiter.is_blocked(b"ann", 0.0)
    fault_limiter.fault(b"one more", 0.0)
    assert not fault_limiter.is_blocked(b"ann", 0.0)
    assert len(fault_limiter._records) == SENDERS_REMEMBERED
