"""The egress policy: shown to all, set by those who may, and nobody's change is lost."""

from __future__ import annotations

from playwright.sync_api import expect

from cloche.domain.egress import MAX_PATTERNS


def test_the_policy_is_set_and_shown(visit, site, person):
    page = visit(person, "/ui/egress")
    expect(page.locator("#allowed")).to_have_text("Nothing: jobs reach no host.")
    page.get_by_label("Hosts").fill("API.example:443\n\n  *.files.example:*  \n")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#said")).to_contain_text("The egress policy is set.")
    expect(page.locator("#allowed li")).to_have_text(["api.example:443", "*.files.example:*"])
    assert site.services.egress.get(person)["allow"] == ["api.example:443", "*.files.example:*"]
    page.reload()
    expect(page.locator("#said")).to_have_count(0)
    expect(page.get_by_label("Hosts")).to_have_value("api.example:443\n*.files.example:*")


def test_what_is_no_host_is_told_and_stays_as_typed(visit, site, person):
    page = visit(person, "/ui/egress")
    typed = "good.example:443\n<b>bad</b>\nworse.example:99999"
    page.get_by_label("Hosts").fill(typed)
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#wrong-allow li")).to_have_count(2)
    expect(page.locator("#wrong-allow")).to_contain_text("<b>bad</b>: ")
    expect(page.get_by_label("Hosts")).to_have_value(typed)
    page.get_by_label("Hosts").fill("\n".join(f"h{n}.example:443" for n in range(MAX_PATTERNS + 1)))
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#refused")).to_be_visible()
    assert site.services.egress.get(person)["version"] == 0


def test_somebody_elses_change_is_not_lost(visit, site, person):
    page = visit(person, "/ui/egress")
    site.services.egress.put(person, ["theirs.example:443"], 0)
    page.get_by_label("Hosts").fill("mine.example:443")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#refused")).to_contain_text("Somebody else has changed the policy")
    expect(page.locator("#allowed li")).to_have_text(["theirs.example:443"])
    expect(page.get_by_label("Hosts")).to_have_value("mine.example:443")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#allowed li")).to_have_text(["mine.example:443"])


def test_who_may_only_look_finds_no_form(visit, site, person):
    viewer = site.person("submitter", person.tenant_id)
    site.services.egress.put(person, ["only.example:443"], 0)
    page = visit(viewer, "/ui/egress")
    expect(page.locator("#allowed li")).to_have_text(["only.example:443"])
    expect(page.locator("#egress-form")).to_have_count(0)
