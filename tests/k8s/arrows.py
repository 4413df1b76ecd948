"""Who must reach whom, by the settings that the manifests give each process, and who may, by the network policies.

A peer is a kind of pod, or an address outside. Required arrows are computed: every URL that a process's settings hold, what
Prometheus and KEDA are told to ask, and what databases and brokers need among themselves. DNS is an arrow as any other.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.k8s.manifests import Manifest, Pod, find_pod, list_pods, of_kind
from tests.k8s.processes import Process, list_processes

NAMESPACE = "prefloop"
TORCH_PORTS = (32768, 60999)  # the lowest and the highest that the kernel gives to who asks for any
DEFAULT_PORTS = {"http": 80, "https": 443, "s3": 443, "gs": 443, "postgresql": 5432, "kafka": 9092}
_URL = re.compile(r"[a-z0-9+]+://\S+")


@dataclass(frozen=True)
class Peer:
    """A kind of pod in a namespace, or with `ip` an address outside the cluster."""

    name: str
    namespace: str = NAMESPACE
    labels: dict[str, str] = field(default_factory=dict, compare=False)
    namespace_labels: dict[str, str] = field(default_factory=dict, compare=False)
    ip: str = ""


@dataclass(frozen=True, order=True)
class Arrow:
    """One kind of connection, by the peers' names."""

    source: str
    target: str
    port: int
    protocol: str = "TCP"


OUTSIDE = [
    Peer("dns", "kube-system", {"k8s-app": "kube-dns"}),
    Peer("prometheus", "monitoring", {"app.kubernetes.io/name": "prometheus"}),
    Peer("keda", "keda", {"app": "keda-operator"}),
    Peer("strimzi", "strimzi", {"name": "strimzi-cluster-operator"}),
    Peer("cnpg", "cnpg-system", {"app.kubernetes.io/name": "cloudnative-pg"}),
    Peer("app", "shop", {"app": "web"}, {"prefloop.dev/apps": "allowed"}),
    Peer("stranger", "elsewhere", {"app.kubernetes.io/name": "gateway"}),
    Peer("neighbour", NAMESPACE, {"app": "somebody-else"}),
    Peer("internet", ip="52.216.0.1"),
    Peer("api-server", ip="10.96.0.1"),
    Peer("instance-metadata", ip="169.254.169.254"),
]


def list_peers(manifests: Sequence[Manifest]) -> list[Peer]:
    """Every pod of the manifests, those that operators will make of them, and the world around."""
    peers = [Peer(pod.name, labels=pod.labels) for pod in list_pods(manifests)]
    peers += [
        Peer(each["metadata"]["name"], labels={"cnpg.io/cluster": each["metadata"]["name"]})
        for each in of_kind(manifests, "Cluster")
    ]
    for each in of_kind(manifests, "Kafka"):
        labels = {"strimzi.io/cluster": each["metadata"]["name"], "app.kubernetes.io/name": "kafka"}
        peers.append(Peer("kafka", labels=labels))
    return [*peers, *OUTSIDE]


def list_required(manifests: Sequence[Manifest]) -> set[Arrow]:
    """Every arrow without which something would not work."""
    arrows: set[Arrow] = set()
    for process in list_processes(manifests):
        urls = [url for value in _list_texts(process.settings) for url in _URL.findall(value)]
        for url in urls:
            arrows |= {Arrow(process.pod.name, *place) for place in _locate(manifests, url)}
        arrows |= set(_list_of_engine_hosts(process)) | set(_list_of_nodes(manifests, process))
    for pod in list_pods(manifests):
        if any("hf download" in word for container in pod.containers for word in container.get("command", [])):
            arrows.add(Arrow(pod.name, "internet", 443))
    arrows |= {Arrow("app", "gateway", port) for port in _list_ports(manifests, "gateway")}
    arrows |= set(_list_scraped(manifests)) | set(_list_asked_by_keda(manifests)) | set(_list_of_operators(manifests))
    inside = [peer for peer in list_peers(manifests) if peer.namespace == NAMESPACE and not peer.ip]
    arrows |= {Arrow(peer.name, "dns", 53, protocol) for peer in inside for protocol in ("TCP", "UDP")}
    return arrows


def _list_of_engine_hosts(process: Process) -> Iterator[Arrow]:
    """Hosts of whole models tell the gateway where their engine is, and look after each other."""
    section = process.settings.get("engine_host", {})
    for source, ports in (("gateway", ("engine_port",)), (process.pod.name, ("engine_port", "port"))):
        yield from (Arrow(source, process.pod.name, section[port]) for port in ports if section)


def _list_of_nodes(manifests: Sequence[Manifest], process: Process) -> Iterator[Arrow]:
    """Nodes of a round come to the rendezvous, and talk to each other and the trainer at ports of torch's choice.

    The trainer reaches its own rendezvous too: a pod reaches itself, whatever policies say.
    """
    if endpoint := process.settings.get("node", {}).get("rendezvous"):
        host, _, port = endpoint.partition(":")
        node, (trainer, target) = process.pod.name, _resolve(manifests, host, int(port))
        yield Arrow(node, trainer, target)
        for pair in ((node, trainer), (trainer, node), (node, node)):
            yield from (Arrow(*pair, port) for port in TORCH_PORTS)


def _list_texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _list_texts(each)
    elif isinstance(value, str):
        yield value


def _locate(manifests: Sequence[Manifest], url: str) -> set[tuple[str, int]]:
    """The peers and ports behind a URL: none for files and what is on the same machine."""
    scheme, _, rest = url.partition("://")
    scheme = scheme.removeprefix("dns+").partition("+")[0]
    if scheme in ("sqlite", "file"):
        return set()
    if scheme in ("s3", "gs"):
        return {("internet", DEFAULT_PORTS[scheme])}
    places: set[tuple[str, int]] = set()
    for address in rest.partition("/")[0].split(","):
        parts = urlsplit(f"//{address}")
        assert parts.hostname, url
        port = parts.port or DEFAULT_PORTS[scheme]
        if parts.hostname not in ("localhost", "127.0.0.1"):
            places.add(_resolve(manifests, parts.hostname, port))
    return places


def _resolve(manifests: Sequence[Manifest], host: str, port: int) -> tuple[str, int]:
    """The pods behind a Service's name and the port that they listen on. Raises AssertionError for a name of none."""
    name, _, domain = host.partition(".")
    assert domain in ("", NAMESPACE, f"{NAMESPACE}.svc", f"{NAMESPACE}.svc.cluster.local"), f"{host} is elsewhere"
    for each in of_kind(manifests, "Cluster"):
        if name == f"{each['metadata']['name']}-rw":
            return each["metadata"]["name"], port
    for each in of_kind(manifests, "Kafka"):
        if name == f"{each['metadata']['name']}-kafka-bootstrap":
            assert port in [listener["port"] for listener in each["spec"]["kafka"]["listeners"]], port
            return "kafka", port
    services = [each for each in of_kind(manifests, "Service") if each["metadata"]["name"] == name]
    assert services, f"no Service is called {name}"
    spec = services[0]["spec"]
    pods = [pod for pod in list_pods(manifests) if spec["selector"].items() <= pod.labels.items()]
    assert len(pods) == 1, f"the Service {name} selects {[pod.name for pod in pods]}"
    (entry,) = [each for each in spec["ports"] if each["port"] == port]
    target = _find_port(pods[0], entry["targetPort"])
    assert spec.get("clusterIP") != "None" or target == port, f"{name} is headless: nothing maps {port} to {target}"
    return pods[0].name, target


def _find_port(pod: Pod, name: str | int) -> int:
    ports = [port for container in pod.containers for port in container.get("ports", [])]
    (found,) = [port["containerPort"] for port in ports if name in (port["name"], port["containerPort"])]
    return int(found)


def _list_ports(manifests: Sequence[Manifest], name: str) -> list[int]:
    pod = find_pod(manifests, name)
    return [port["containerPort"] for container in pod.containers for port in container.get("ports", [])]


def _list_scraped(manifests: Sequence[Manifest]) -> Iterator[Arrow]:
    """What ServiceMonitors and PodMonitors have Prometheus ask. A monitor that selects nothing is an AssertionError."""
    for monitor in of_kind(manifests, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        found = [each for each in of_kind(manifests, "Service") if wanted <= each["metadata"]["labels"].items()]
        assert len(found) == 1, f"the monitor {monitor['metadata']['name']} selects {len(found)} Services"
        for endpoint in monitor["spec"]["endpoints"]:
            (port,) = [each["port"] for each in found[0]["spec"]["ports"] if each["name"] == endpoint["port"]]
            yield Arrow("prometheus", *_resolve(manifests, found[0]["metadata"]["name"], port))
    for monitor in of_kind(manifests, "PodMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (pod,) = [pod for pod in list_pods(manifests) if wanted <= pod.labels.items()]
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            yield Arrow("prometheus", pod.name, _find_port(pod, endpoint["port"]))


def _list_asked_by_keda(manifests: Sequence[Manifest]) -> Iterator[Arrow]:
    for each in of_kind(manifests, "ScaledObject"):
        for trigger in each["spec"]["triggers"]:
            for server in filter(None, trigger["metadata"].get("bootstrapServers", "").split(",")):
                host, _, port = server.partition(":")
                yield Arrow("keda", *_resolve(manifests, host, int(port)))


def _list_of_operators(manifests: Sequence[Manifest]) -> Iterator[Arrow]:
    """What PostgreSQL and Kafka need among themselves and with their operators, as their manuals say."""
    for each in of_kind(manifests, "Cluster"):
        name = each["metadata"]["name"]
        yield from (Arrow(name, name, 5432), Arrow(name, name, 8000), Arrow("cnpg", name, 8000))
        yield from (Arrow(name, "api-server", port) for port in (443, 6443))
        if "backup" in each["spec"]:
            yield Arrow(name, "internet", 443)
    for _ in of_kind(manifests, "Kafka"):
        for port in (9090, 9091, 8443):
            yield from (Arrow("kafka", "kafka", port), Arrow("strimzi", "kafka", port))
        yield from (Arrow("kafka", "api-server", port) for port in (443, 6443))


def list_allowed(manifests: Sequence[Manifest], ports: set[tuple[int, str]]) -> set[Arrow]:
    """Every arrow at these ports, with an end in our namespace, that the policies let through."""
    peers = list_peers(manifests)
    rules = {way: {peer.name: _list_rules(manifests, peer, way) for peer in peers} for way in ("Egress", "Ingress")}
    allowed = set()
    for source in peers:
        for target in peers:
            leaving = _list_open(rules["Egress"][source.name], target, "to", ports)
            entering = _list_open(rules["Ingress"][target.name], source, "from", ports)
            if any(peer.namespace == NAMESPACE and not peer.ip for peer in (source, target)):
                allowed |= {Arrow(source.name, target.name, *place) for place in leaving & entering}
    return allowed


def _list_rules(manifests: Sequence[Manifest], peer: Peer, way: str) -> list[dict[str, Any]] | None:
    """The rules of every policy that selects a peer this way; None where none does, and so everything passes."""
    specs = [policy["spec"] for policy in of_kind(manifests, "NetworkPolicy") if way in policy["spec"]["policyTypes"]]
    is_ours = peer.namespace == NAMESPACE and not peer.ip
    selecting = [spec for spec in specs if is_ours and _selects(spec["podSelector"], peer.labels)]
    return [rule for spec in selecting for rule in spec.get(way.lower(), [])] if selecting else None


def _list_open(
    rules: list[dict[str, Any]] | None, other: Peer, side: str, ports: set[tuple[int, str]]
) -> set[tuple[int, str]]:
    """The ports at which one end lets the other through."""
    if rules is None:
        return ports
    covering = [rule for rule in rules if _covers_peer(rule.get(side), other)]
    return {place for place in ports if any(_covers_port(rule, *place) for rule in covering)}


def _covers_port(rule: dict[str, Any], port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    return not ports or any(
        each["port"] <= port <= each.get("endPort", each["port"]) and each.get("protocol", "TCP") == protocol
        for each in ports
    )


def _covers_peer(entries: list[dict[str, Any]] | None, peer: Peer) -> bool:
    return not entries or any(_matches(entry, peer) for entry in entries)


def _matches(entry: dict[str, Any], peer: Peer) -> bool:
    if "ipBlock" in entry:
        if not peer.ip:  # pods have addresses too, of the private ranges that our blocks leave out
            return False
        address, block = ipaddress.ip_address(peer.ip), entry["ipBlock"]
        inside = address in ipaddress.ip_network(block["cidr"])
        return inside and not any(address in ipaddress.ip_network(each) for each in block.get("except", []))
    if peer.ip:
        return False
    if "namespaceSelector" in entry:
        labels = {"kubernetes.io/metadata.name": peer.namespace, **peer.namespace_labels}
        if not _selects(entry["namespaceSelector"], labels):
            return False
    elif peer.namespace != NAMESPACE:
        return False
    return _selects(entry.get("podSelector", {}), peer.labels)


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", expression
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True
