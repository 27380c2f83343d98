"""One-sided links: link_clusters, unlink_clusters, switch_role."""

from __future__ import annotations

import socket

from datadist_peer import BLOCK_BYTES, BLOCKS, TENSORS, Peer, Peers, refused


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def listening(peers: Peers, **options: object) -> tuple[Peer, int]:
    """Cluster 1, which others can link with at a port."""
    port = free_port()
    peer = peers(1, listen=f"127.0.0.1:{port}", **options)
    peer.call("register", BLOCKS, BLOCK_BYTES, TENSORS)
    peer.call("fill", 1)
    return peer, port


def client(peers: Peers, **options: object) -> Peer:
    peer = peers(2, **options)
    peer.call("register", BLOCKS, BLOCK_BYTES, TENSORS)
    return peer


def clusters(peer: Peer, call: str, port: int, **more: object) -> tuple[str, list[str]]:
    codes: tuple[str, list[str]] = peer.call("clusters", call, 1, port, **more)
    return codes


def test_one_side_calls_and_both_can_pull(peers: Peers) -> None:
    server, port = listening(peers)
    one = client(peers)
    assert clusters(one, "link_clusters", port) == ("LLM_SUCCESS", ["LLM_SUCCESS"])
    one.call("pull", 1, 1, [3], [4])
    assert one.call("read", 1)[0][4096:5120] == server.call("read", 1)[0][3072:4096]
    server.call("pull", 2, 1, [4], [0])


def test_codes_are_returned_not_raised(peers: Peers) -> None:
    one = client(peers)
    code, codes = clusters(one, "link_clusters", free_port(), timeout=200)
    assert (code, codes) == ("LLM_LINK_FAILED", ["LLM_LINK_FAILED"])


def test_linking_twice_is_already_link(peers: Peers) -> None:
    _, port = listening(peers)
    one = client(peers)
    clusters(one, "link_clusters", port)
    assert clusters(one, "link_clusters", port)[0] == "LLM_ALREADY_LINK"


def test_a_restarted_client_links_again_at_once(peers: Peers) -> None:
    server, port = listening(peers)
    one = client(peers)
    clusters(one, "link_clusters", port)
    one.kill()
    again = client(peers)
    assert clusters(again, "link_clusters", port)[0] == "LLM_SUCCESS"
    again.call("pull", 1, 1, [3], [4])
    server.call("pull", 2, 1, [4], [0])


def test_caches_may_still_be_registered_for_remote_access_afterwards(peers: Peers) -> None:
    """Other than after `link`."""
    server, port = listening(peers)
    one = client(peers)
    clusters(one, "link_clusters", port)
    server.call("register", BLOCKS, BLOCK_BYTES, TENSORS, model_id=1)
    one.call("register", BLOCKS, BLOCK_BYTES, TENSORS, model_id=1, remote_accessible=True)
    one.call("pull", 1, 2, [3], [4], model_id=1)


def test_unlink_clusters_ends_both_sides(peers: Peers) -> None:
    server, port = listening(peers)
    one = client(peers)
    clusters(one, "link_clusters", port)
    assert clusters(one, "unlink_clusters", port) == ("LLM_SUCCESS", ["LLM_SUCCESS"])
    for peer, other in ((one, 1), (server, 2)):
        assert refused(peer, "pull", other, 1, [0], [0]).kind == "LLM_NOT_YET_LINK"


def test_unlink_clusters_by_force_ends_this_side_only(peers: Peers) -> None:
    server, port = listening(peers)
    one = client(peers)
    clusters(one, "link_clusters", port)
    assert clusters(one, "unlink_clusters", port, force=True)[0] == "LLM_SUCCESS"
    assert refused(one, "pull", 1, 1, [0], [0]).kind == "LLM_NOT_YET_LINK"
    assert refused(server, "pull", 2, 1, [0], [0]).kind == "LLM_FAILED"


def test_unlink_clusters_that_reaches_nobody_is_unlink_failed(peers: Peers) -> None:
    server, port = listening(peers)
    one = client(peers)
    clusters(one, "link_clusters", port)
    server.kill()
    assert clusters(one, "unlink_clusters", port)[0] == "LLM_UNLINK_FAILED"
    assert clusters(one, "unlink_clusters", port, force=True)[0] == "LLM_SUCCESS"


def test_a_local_address_is_needed_unless_local_comm_res_is_given(peers: Peers) -> None:
    _, port = listening(peers)
    error = refused(client(peers), "clusters", "link_clusters", 1, port, local=False)
    assert error.kind == "LLM_PARAM_INVALID"
    three = peers(3, more={"llm.LocalCommRes": "{}"})
    assert clusters(three, "link_clusters", port, local=False)[0] == "LLM_SUCCESS"


def test_different_remote_accessible_flags_do_not_link(peers: Peers) -> None:
    _, port = listening(peers)
    assert clusters(client(peers, accessible=False), "link_clusters", port)[0] == "LLM_LINK_FAILED"


def test_a_timeout_must_be_positive(peers: Peers) -> None:
    error = refused(client(peers), "clusters", "link_clusters", 1, 1, timeout=0)
    assert error.kind == "LLM_PARAM_INVALID"


def test_switch_role_is_refused_while_links_exist(peers: Peers) -> None:
    server, port = listening(peers)
    one = client(peers)
    clusters(one, "link_clusters", port)
    switch = "dd.switch_role(lib.LLMRole.MIX)"
    assert refused(one, "run", switch).kind == "LLM_EXIST_LINK"
    clusters(one, "unlink_clusters", port)
    one.call("run", switch)
    server.call("run", switch)


def test_switch_role_opens_and_closes_the_listening(peers: Peers) -> None:
    server, port = listening(peers)
    one = client(peers)
    server.call("run", "dd.switch_role(lib.LLMRole.MIX)")
    assert clusters(one, "link_clusters", port)[0] == "LLM_LINK_FAILED"
    options = {"llm.listenIpInfo": f"127.0.0.1:{port}"}
    server.call("run", "dd.switch_role(lib.LLMRole.MIX, o)", o=options)
    assert clusters(one, "link_clusters", port)[0] == "LLM_SUCCESS"


def test_a_port_in_use_fails_the_init(peers: Peers) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        taken = f"127.0.0.1:{sock.getsockname()[1]}"
        assert refused(peers(1, initialise=False), "init", listen=taken).kind == "LLM_FAILED"


def test_listen_ip_info_must_be_ip_and_port(peers: Peers) -> None:
    peer = peers(1, initialise=False)
    assert refused(peer, "init", listen="127.0.0.1").kind == "LLM_PARAM_INVALID"
