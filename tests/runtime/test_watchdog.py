"""Waiting for results while nodes come and go."""

import threading

import pytest

from mvad.errors import UsageError
from mvad.runtime import watchdog as patience
from mvad.runtime.watchdog import watch_nodes

GPU = {"Alive": True, "Resources": {"GPU": 1.0, "CPU": 4.0}}
HEAD = {"Alive": True, "Resources": {"memory": 1.0}}
CLAIM = {"num_gpus": 0.6, "num_cpus": 0.0}


@pytest.fixture
def nodes(monkeypatch):
    """What Ray says its nodes are."""
    present = [HEAD, GPU]
    monkeypatch.setattr(patience.ray, "nodes", lambda: present)
    return present


def patient(items, said, join_seconds=60.0):
    return watch_nodes(items, CLAIM, said.append, look_seconds=0.02, join_seconds=join_seconds)


def late(item, gate):
    yield 1
    assert gate.wait(30)
    yield item


def test_items_come_in_order_one_at_a_time_and_only_when_asked_for(nodes):
    taken = []
    items = patient((taken.append(number) or number for number in range(5)), [])
    assert [next(items), next(items)] == [0, 1]
    assert taken == [0, 1]
    assert list(items) == [2, 3, 4]


def test_errors_reach_whoever_waits(nodes):
    def broken():
        yield 1
        raise ValueError("no more")

    items = patient(broken(), [])
    assert next(items) == 1
    with pytest.raises(ValueError, match="no more"):
        next(items)


def test_nothing_is_said_while_a_node_computes(nodes):
    said, gate = [], threading.Event()
    timer = threading.Timer(0.3, gate.set)
    timer.start()
    assert list(patient(late(2, gate), said)) == [1, 2]
    assert said == []


def test_a_lost_last_node_is_waited_for(nodes):
    said, gate = [], threading.Event()
    items = patient(late(2, gate), said)
    assert next(items) == 1
    nodes.remove(GPU)
    threading.Timer(0.3, gate.set).start()  # as if a node had joined and gone on
    assert next(items) == 2
    assert len(said) == 1
    assert "waiting for one to join" in said[0]


def test_a_run_whose_nodes_never_come_back_ends_with_a_sentence(nodes):
    said, gate = [], threading.Event()
    items = patient(late(2, gate), said, join_seconds=0.1)
    assert next(items) == 1
    nodes[:] = [HEAD, {**GPU, "Alive": False}]
    with pytest.raises(UsageError, match="lost its last node that could compute, and none joined within 0 s"):
        next(items)
    gate.set()
    assert len(said) == 1


def test_what_is_left_of_an_abandoned_data_set_is_let_go(nodes):
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    items = patient(endless(), [])
    assert next(items) == 0
    items.close()
    assert closed.wait(30)
