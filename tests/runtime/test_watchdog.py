"""Waiting for results while nodes join and leave the cluster."""

import threading

import pytest

from mvad.errors import UsageError
from mvad.runtime import watchdog
from mvad.runtime.watchdog import watch_nodes

GPU = {"Alive": True, "Resources": {"GPU": 1.0, "CPU": 4.0}}
HEAD = {"Alive": True, "Resources": {"memory": 1.0}}
CLAIM = {"num_gpus": 0.6, "num_cpus": 0.0}


@pytest.fixture
def nodes(monkeypatch):
    """The nodes that Ray lists; tests add and remove some."""
    listed = [HEAD, GPU]
    monkeypatch.setattr(watchdog.ray, "nodes", lambda: listed)
    return listed


def watched(items, messages, join_timeout_s=60.0):
    return watch_nodes(items, CLAIM, messages.append, poll_interval_s=0.02, join_timeout_s=join_timeout_s)


def delayed(item, gate):
    yield 1
    assert gate.wait(30)
    yield item


def test_items_come_in_order_one_at_a_time_and_only_when_asked_for(nodes):
    taken = []
    items = watched((taken.append(number) or number for number in range(5)), [])
    assert [next(items), next(items)] == [0, 1]
    assert taken == [0, 1]
    assert list(items) == [2, 3, 4]


def test_errors_reach_the_caller(nodes):
    def broken():
        yield 1
        raise ValueError("no more")

    items = watched(broken(), [])
    assert next(items) == 1
    with pytest.raises(ValueError, match="no more"):
        next(items)


def test_no_message_while_a_node_computes(nodes):
    messages, gate = [], threading.Event()
    timer = threading.Timer(0.3, gate.set)
    timer.start()
    assert list(watched(delayed(2, gate), messages)) == [1, 2]
    assert messages == []


def test_a_lost_last_node_is_waited_for(nodes):
    gate = threading.Event()

    class Messages(list):
        def append(self, message):
            super().append(message)
            threading.Timer(0.1, gate.set).start()  # as if a node had joined and continued

    messages = Messages()
    items = watched(delayed(2, gate), messages)
    assert next(items) == 1
    nodes.remove(GPU)
    assert next(items) == 2
    assert len(messages) == 1
    assert "waiting for one to join" in messages[0]


def test_a_run_whose_nodes_never_come_back_ends_with_a_sentence(nodes):
    messages, gate = [], threading.Event()
    items = watched(delayed(2, gate), messages, join_timeout_s=0.1)
    assert next(items) == 1
    nodes[:] = [HEAD, {**GPU, "Alive": False}]
    with pytest.raises(UsageError, match="lost its last node that can compute, and none joined within 0 s"):
        next(items)
    gate.set()
    assert len(messages) == 1


def test_an_abandoned_data_set_is_closed(nodes):
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    items = watched(endless(), [])
    assert next(items) == 0
    items.close()
    assert closed.wait(30)
