from manychar.protocol.manners import (
    CUT_OFF_FOR,
    FAULTS_ALLOWED,
    FORGIVEN_AFTER,
    SENDERS_REMEMBERED,
    Manners,
)


def test_faults_now_and_then_are_forgiven() -> None:
    manners = Manners()
    for i in range(10 * FAULTS_ALLOWED):
        assert not manners.fault(b"ann", i * FORGIVEN_AFTER / FAULTS_ALLOWED)


def test_one_too_many_in_a_row_cuts_off_for_a_while() -> None:
    manners = Manners()
    assert not any(manners.fault(b"ann", 1.0) for _ in range(FAULTS_ALLOWED))
    assert manners.fault(b"ann", 1.0)
    assert manners.is_cut_off(b"ann", 0.9 + CUT_OFF_FOR)
    assert not manners.is_cut_off(b"bob", 1.0)
    assert not manners.is_cut_off(b"ann", 1.0 + CUT_OFF_FOR)
    assert not any(manners.fault(b"ann", 2.0 + CUT_OFF_FOR) for _ in range(FAULTS_ALLOWED))
    assert manners.fault(b"ann", 2.0 + CUT_OFF_FOR)


def test_what_is_remembered_is_bounded() -> None:
    manners = Manners()
    for _ in range(FAULTS_ALLOWED + 1):
        manners.fault(b"ann", 0.0)
    for i in range(SENDERS_REMEMBERED - 1):
        manners.fault(str(i).encode(), 0.0)
    assert manners.is_cut_off(b"ann", 0.0)
    manners.fault(b"one more", 0.0)
    assert not manners.is_cut_off(b"ann", 0.0)
    assert len(manners._records) == SENDERS_REMEMBERED
