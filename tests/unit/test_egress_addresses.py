"""Which addresses are public: every special range refused, in every wrapping."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.domain.addresses import is_public, parse_address, parse_network, within

REFUSED = """0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.255 168.63.129.16 169.254.169.254
172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255
240.0.0.1 255.255.255.255
:: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:100.64.0.1 ::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::808:808
2002:7f00:1:: 2002:a9fe:a9fe::1 2002:a00:1::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:db8::1 2001:2::1 2001:10::1 2001:20::1 3fff::1
fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1 100::1 4000::1 5f00::1 2606:4700::1%eth0""".split()
PUBLIC = """8.8.8.8 1.1.1.1 93.184.216.34 100.63.255.255 100.128.0.1 172.15.0.1 172.32.0.1 192.0.1.1 198.17.0.1 223.255.255.1 168.63.129.17
2606:4700:4700::1111 2a00:1450:4001:81b::200e ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1""".split()


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_public(text):
    assert not is_public(parse_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_what_is_public(text):
    assert is_public(parse_address(text))


@given(st.ip_addresses(v=4))
def test_a_wrapped_address_is_judged_as_itself(address):
    number = int(address)
    wrapped = [
        ipaddress.IPv6Address(0xFFFF << 32 | number),
        ipaddress.IPv6Address((0x64FF9B << 96) | number),
        ipaddress.IPv6Address(0x2002 << 112 | number << 80 | 1),
    ]
    assert {is_public(each) for each in wrapped} == {is_public(address)}
    assert is_public(address) <= address.is_global


@given(st.ip_addresses(v=6))
def test_no_ipv6_address_outside_global_unicast_is_public_by_itself(address):
    if is_public(address) and address.ipv4_mapped is None and address not in ipaddress.IPv6Network("64:ff9b::/96"):
        assert address in ipaddress.IPv6Network("2000::/3")


def test_networks_that_an_operator_allows():
    networks = (parse_network("10.0.0.5"), parse_network("fd00::/8"))
    inside = {"10.0.0.5": True, "::ffff:10.0.0.5": True, "10.0.0.6": False, "fd12::1": True, "fd12::1%eth0": False}
    assert {text: within(parse_address(text), networks) for text in inside} == inside
    with pytest.raises(ValueError, match="host bits"):
        parse_network("10.0.0.5/24")
