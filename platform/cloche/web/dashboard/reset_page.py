"""A new password by a one-time code. The code comes in the part of a link that browsers send nowhere, or is pasted."""

from __future__ import annotations

from flask import request

from cloche.domain.permissions import Actor
from cloche.errors import Invalid, Unauthenticated
from cloche.web import signin_models
from cloche.web.auth import origin
from cloche.web.bodies import validated
from cloche.web.dashboard.fields import Problems, beside
from cloche.web.dashboard.site import Answer, Page, Site, go, say
from cloche.web.routing import PUBLIC

_FIELDS = ("code", "new_password", "again")


def reset(site: Site, _actor: Actor | None) -> Answer:
    """The code stays in the form when the password is refused: it is still good then. It is never part of an address."""
    if request.method == "GET":
        return _form(site, "", {})
    code = "".join(request.form.get("code", "").split())
    new, revoke = request.form.get("new_password", ""), request.form.get("revoke_tokens") == "yes"
    try:
        if new != request.form.get("again", ""):
            return _form(site, code, {"again": ["This is not what stands above."]}), 422
        body = validated(
            signin_models.UsedReset, {"code": code.rpartition("#")[2], "new_password": new, "revoke_tokens": revoke}
        )
        site.services.access.use_reset(body.code, body.new_password, origin(), revoke_tokens=body.revoke_tokens)
    except (Unauthenticated, Invalid) as refused:
        return _form(site, code, beside(refused, _FIELDS, codes={"reset-invalid": "code"})), refused.status
    say("The password is set. Sign in with it.")
    return go("sign_in")


def _form(site: Site, code: str, problems: Problems) -> str:
    return site.render("reset.html", code=code, problems=problems, least=site.services.settings.signin.password_min)


PAGES = (Page("/ui/password-reset", "reset", reset, PUBLIC, methods=("GET", "POST")),)
