"""A message's webhook_url reaches the hosts of the list and nothing else in the network."""

import pytest

from dispatcher.allowed_hosts import AllowedHosts


@pytest.mark.parametrize(
    ("entries", "url"),
    [
        (["backend"], "http://backend/x"),
        (["backend"], "https://BACKEND:8443/x"),
        (["backend"], "https://backend./x"),
        (["backend:8443"], "https://backend:8443/x"),
        (["backend:443"], "https://backend/x"),
        (["backend:80"], "http://backend/x"),
        ([" Backend "], "http://backend/x"),
        (["*.example.com"], "https://a.b.example.com/x"),
        (["*"], "https://anything.example.org/x"),
        (["10.0.0.0/8"], "http://10.1.2.3/x"),
        (["127.0.0.1"], "http://127.0.0.1:9000/x"),
        (["::1"], "http://[::1]:9000/x"),
        (["fd00::/8"], "http://[fd00::7]/x"),
    ],
)
def test_a_listed_host_is_allowed(entries: list[str], url: str) -> None:
    assert AllowedHosts(entries).refusal(url) is None


@pytest.mark.parametrize(
    ("entries", "url"),
    [
        ([], "http://backend/x"),
        (["backend"], "http://backend.evil.com/x"),
        (["backend"], "http://evil.com/backend"),
        (["backend"], "http://backend@evil.com/x"),
        (["backend"], "http://user:pw@backend/x"),
        (["backend"], "ftp://backend/x"),
        (["backend"], "http:///x"),
        (["backend"], "http://backend:port/x"),
        (["backend"], "http://[::1/x"),
        (["*"], "http://a b/x"),
        (["*"], "http://a..example.com/x"),
        (["*"], "http://" + "a" * 64 + ".example.com/x"),
        (["*"], "http://*.example.com/x"),
        (["backend:8443"], "https://backend/x"),
        (["backend:8443"], "https://backend:8444/x"),
        (["*.example.com"], "https://example.com/x"),
        (["*.example.com"], "https://badexample.com/x"),
        (["*.example.com"], "https://evil.com\\.example.com/x"),
        (["*.example.com"], "https://evil.com\\@a.example.com/x"),
        (["*.example.com"], "https://evil.com#.example.com/x"),
        (["*.example.com"], "https://evil.com?.example.com/x"),
        (["10.0.0.0/8"], "http://11.1.2.3/x"),
        (["10.0.0.0/8"], "http://backend/x"),
    ],
)
def test_another_host_is_refused_with_a_sentence(entries: list[str], url: str) -> None:
    assert AllowedHosts(entries).refusal(url)


@pytest.mark.parametrize(
    ("entries", "host", "address"),
    [
        (["backend"], "backend", "10.0.0.7"),
        (["backend"], "backend.", "10.0.0.7"),
        (["backend."], "backend.", "10.0.0.7"),
        (["backend:80"], "backend", "127.0.0.1"),
        (["*.example.com"], "a.example.com", "93.184.216.34"),
        (["*"], "a.example.com", "2606:4700::1111"),
        (["*", "10.0.0.0/8"], "a.example.com", "10.0.0.7"),
        (["*", "169.254.0.0/16"], "a.example.com", "169.254.1.1"),
        (["*", "10.0.0.0/8"], "a.example.com", "::ffff:10.0.0.7"),
    ],
)
def test_an_allowed_host_may_be_at(entries: list[str], host: str, address: str) -> None:
    assert AllowedHosts(entries).address_refusal(host, 80, address) is None


@pytest.mark.parametrize(
    ("entries", "host", "address"),
    [
        (["*"], "a.example.com", "10.0.0.7"),
        (["*"], "a.example.com", "127.0.0.1"),
        (["*"], "a.example.com", "::1"),
        (["*"], "a.example.com", "fe80::1%eth0"),
        (["*"], "a.example.com", "::ffff:169.254.169.254"),
        (["*"], "a.example.com", "100.64.0.1"),
        (["*.example.com"], "a.example.com", "192.168.1.1"),
        (["backend"], "backend", "169.254.169.254"),
        (["backend"], "backend", "0.0.0.0"),
        (["backend"], "backend", "224.0.0.1"),
        (["*", "10.0.0.0/8"], "a.example.com", "192.168.0.1"),
        (["backend:80"], "backend", "10.0.0.7"),
    ],
)
def test_an_allowed_host_may_not_be_at(entries: list[str], host: str, address: str) -> None:
    port = 81 if entries == ["backend:80"] else 80
    refusal = AllowedHosts(entries).address_refusal(host, port, address)
    assert refusal
    assert host in refusal
