"""Views into a recovery VM and out again, against a QEMU in memory: what fails, what is taken back, what is left."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from rephub.agent import redirect
from rephub.agent.redirects import Redirects
from rephub.core.errors import ConflictError, NotFoundError, QemuError, UnavailableError, from_json
from rephub.projections.catalogue import Fot
from rephub.schemas import events as ev


class FakeVm:
    """Nodes and devices of a QEMU."""

    path = "/vm1r"

    def __init__(self, *ports: str, status: str = "prelaunch", refuse: str = "") -> None:
        self.nodes: dict[str, Any] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.ports = list(ports)
        self.status = status
        self.refuse = refuse
        self.lets_go = True
        self.commands: list[str] = []
        self._handlers: dict[str, Any] = {}

    def on_job(self, name: str, handler: Any) -> None:
        self._handlers[name] = handler

    async def execute(self, command: str, arguments: Any = None, *, seconds: float = 1) -> Any:
        self.commands.append(command)
        arguments = arguments or {}
        if command == self.refuse:
            raise QemuError("refused", command=command, description="refused")
        return getattr(self, command.replace("-", "_"))(arguments)

    def query_named_block_nodes(self, _arguments: Any) -> Any:
        return [{"node-name": name} for name in self.nodes]

    def query_status(self, _arguments: Any) -> Any:
        return {"status": self.status}

    def cont(self, _arguments: Any) -> None:
        self.status = "running"

    def qom_list(self, _arguments: Any) -> Any:
        ports = [{"name": name, "type": "child<pcie-root-port>"} for name in self.ports]
        return ports + [{"name": name, "type": "child<virtio-blk-pci>"} for name in self.devices]

    def blockdev_add(self, arguments: Any) -> None:
        self.nodes[arguments["node-name"]] = arguments

    def blockdev_del(self, arguments: Any) -> None:
        name = arguments["node-name"]
        if any(device["drive"] == name for device in self.devices.values()):
            raise QemuError("refused", command="blockdev-del", description=f"Node {name} is in use")
        del self.nodes[name]

    def device_add(self, arguments: Any) -> None:
        bus = arguments.get("bus")
        if self.ports and bus is None:
            raise QemuError(
                "refused", command="device_add", description="Bus 'pcie.0' does not support hotplugging"
            )
        if any(bus and device.get("bus") == bus for device in self.devices.values()):
            raise QemuError(
                "refused",
                command="device_add",
                description="PCI: slot 0 function 0 not available, in use by virtio-blk-pci",
            )
        self.devices[arguments["id"]] = arguments

    def device_del(self, arguments: Any) -> None:
        if self.lets_go:
            del self.devices[arguments["id"]]
            self._handlers[arguments["id"]]("DEVICE_DELETED", {"device": arguments["id"]})


VIEWS = [{"uri": f"nbd+unix:///v{number}?socket=/s/fot"} for number in range(2)]


def disks(fot: str = "fot-0123456789ab") -> list[redirect.Disk]:
    return redirect.disks(fot, VIEWS, read_only=False)


def test_names_fit_into_qemu() -> None:
    assert [disk.name for disk in disks()] == ["rephub-fot-0123456789ab-0", "rephub-fot-0123456789ab-1"]
    long = [disk.name for disk in disks("x" * 100)]
    assert len(set(long)) == 2
    assert all(len(name) <= 31 for name in long)


@pytest.mark.parametrize("status", ["prelaunch", "paused", "running"])
async def test_all_disks_in_the_vm_runs_all_disks_out(status: str) -> None:
    vm = FakeVm(status=status)
    await redirect.attach(vm, disks())  # type: ignore[arg-type]
    assert vm.status == "running"
    assert ("cont" in vm.commands) == (status != "running")
    assert vm.nodes.keys() == vm.devices.keys() == {disk.name for disk in disks()}
    await redirect.detach(vm, disks())  # type: ignore[arg-type]
    assert not vm.nodes
    assert not vm.devices
    await redirect.detach(vm, disks())  # type: ignore[arg-type]


async def test_each_disk_gets_a_free_root_port() -> None:
    vm = FakeVm("rp1", "rp2")
    await redirect.attach(vm, disks())  # type: ignore[arg-type]
    assert [device["bus"] for device in vm.devices.values()] == ["rp1", "rp2"]


@pytest.mark.parametrize(
    ("vm", "words"),
    [
        (FakeVm("rp1"), "no free slot"),
        (FakeVm(refuse="blockdev-add"), "refused"),
        (FakeVm(refuse="device_add"), "refused"),
        (FakeVm(refuse="cont"), "refused"),
    ],
)
async def test_what_fails_leaves_nothing(vm: FakeVm, words: str) -> None:
    with pytest.raises(ConflictError) as raised:
        await redirect.attach(vm, disks())  # type: ignore[arg-type]
    assert words in raised.value.message
    assert raised.value.hint
    assert not vm.nodes
    assert not vm.devices
    assert vm.status == "prelaunch"


async def test_a_guest_that_does_not_let_go_is_waited_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redirect, "DELETE_SECONDS", 0.2)
    vm = FakeVm()
    await redirect.attach(vm, disks())  # type: ignore[arg-type]
    vm.lets_go = False
    with pytest.raises(UnavailableError, match="did not let go"):
        await redirect.detach(vm, disks())  # type: ignore[arg-type]


class Site:
    """An agent's share in one test, its VM and the events it writes."""

    def __init__(self, vm: FakeVm | None) -> None:
        self.vm = vm
        self.events: list[tuple[type, dict[str, Any]]] = []
        self.fot = Fot(
            "f1", ["v0", "v1"], None, "d1", "latest", "", read_only=False, qmp="/vm1r", event_id="e",
            state="started", views=VIEWS, agent="a1", redirect="due",
        )  # fmt: skip
        self.redirects = Redirects(
            SimpleNamespace(  # type: ignore[arg-type]
                vms=self,
                settings=SimpleNamespace(agent=SimpleNamespace(id="a1")),
                catalogue=SimpleNamespace(fots={"f1": self.fot}, failovers={}),
                announcer=SimpleNamespace(emit=self._emit),
            )
        )

    def _emit(self, event: type, _subject: str, **fields: Any) -> None:
        self.events.append((event, fields))

    async def get(self, path: str, _user: object) -> FakeVm:
        if self.vm is None:
            raise NotFoundError(f"monitor socket {path} is not there")
        return self.vm

    def give_back(self, path: str, _user: object) -> None:
        assert path == "/vm1r"

    def changing(self, _vm: FakeVm) -> asyncio.Lock:
        return asyncio.Lock()

    async def settled(self, events: int) -> list[type]:
        async with asyncio.timeout(5):
            while len(self.events) < events:
                await asyncio.sleep(0.01)
        for _ in range(5):
            self.redirects.look()
            await asyncio.sleep(0)
        return [event for event, _ in self.events]


async def test_attached_once_detached_once() -> None:
    site = Site(vm := FakeVm())
    site.redirects.look()
    assert await site.settled(1) == [ev.FotAttached]
    assert len(vm.devices) == 2
    site.fot.redirect, site.fot.state = "attached", "stopping"
    site.redirects.look()
    assert await site.settled(2) == [ev.FotAttached, ev.FotDetached]
    assert not vm.nodes
    assert site.events[1][1]["warning"] is None
    await site.redirects.stop()


async def test_another_process_finds_what_the_one_before_left() -> None:
    vm = FakeVm()
    await redirect.attach(vm, disks("f1"))  # type: ignore[arg-type]
    site = Site(vm)
    site.redirects.look()
    assert await site.settled(1) == [ev.FotAttached]
    assert len(vm.devices) == 2
    await site.redirects.stop()


async def test_a_failure_is_told_as_the_error_it_is() -> None:
    site = Site(None)
    site.redirects.look()
    assert await site.settled(1) == [ev.FotAttachFailed]
    assert isinstance(from_json(site.events[0][1]["error"]), NotFoundError)
    await site.redirects.stop()


async def test_a_vm_that_is_gone_has_let_go() -> None:
    site = Site(None)
    site.fot.state, site.fot.redirect = "stopping", "attached"
    site.redirects.look()
    assert await site.settled(1) == [ev.FotDetached]
    assert site.events[0][1]["warning"] is None
    await site.redirects.stop()


async def test_a_disk_that_stays_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redirect, "DELETE_SECONDS", 0.1)
    vm = FakeVm()
    await redirect.attach(vm, disks("f1"))  # type: ignore[arg-type]
    vm.lets_go = False
    site = Site(vm)
    site.fot.state, site.fot.redirect = "stopping", "attached"
    site.redirects.look()
    assert await site.settled(1) == [ev.FotDetached]
    assert "may still be in the VM" in site.events[0][1]["warning"]
    await site.redirects.stop()


async def test_a_hub_that_gave_up_meanwhile_finds_the_vm_clean() -> None:
    site = Site(vm := FakeVm())
    real, done = vm.cont, asyncio.Event()

    def cont(arguments: Any) -> None:
        real(arguments)
        site.fot.redirect, site.fot.state = "done", "stopping"
        done.set()

    vm.cont = cont  # type: ignore[method-assign]
    site.redirects.look()
    await done.wait()
    async with asyncio.timeout(5):
        while vm.nodes:
            await asyncio.sleep(0.01)
    assert site.events == []
    await site.redirects.stop()


async def test_an_error_of_qemu_survives_its_way_through_an_event() -> None:
    again = from_json(QemuError("refused", command="device_add", description="no").to_json())
    assert isinstance(again, QemuError)
    assert again.description == "no"
