"""Who is asking: a bearer token (or the same as HTTP Basic's password), a session cookie, or, where a route says so, user name and password.
Never two at once.

A page asks :meth:`Auth.actor` or :meth:`Auth.require`; a sign-in form calls :meth:`Auth.sign_in`. Unsafe requests that come with a cookie
have passed the origin and CSRF checks before any view runs.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import flask_login
from flask import Flask, current_app, g, request, session
from flask_wtf.csrf import CSRFProtect, generate_csrf

from cloche.config import Settings
from cloche.db import scope
from cloche.domain.permissions import NAMED_ONLY, Actor, Permission
from cloche.errors import BadRequest, Forbidden, RateLimited, Unauthenticated
from cloche.services.access import AccessService
from cloche.services.actors import Origin, TenantUnknown
from cloche.services.rate_limits import RateLimits
from cloche.services.sessions import SignedIn
from cloche.services.tokens import TOKEN_PREFIX
from cloche.web import scoping, throttle

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
API_BLUEPRINT = "api"
TENANT_HEADER = "X-Cloche-Tenant"
_TENANT_TEXT = (
    256  # characters kept of what it says; no tenant's name is so long, and it is remembered beside the actor
)
_FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})


class _Signed(flask_login.UserMixin):
    """What flask-login keeps: the session's secret, and the actor it stands for."""

    def __init__(self, secret: str, actor: Actor) -> None:
        self.id = secret
        self.actor = actor


class _Csrf(CSRFProtect):
    def _get_csrf_token(self) -> str | None:
        # The header first: reading the form of an upload would consume its body before the handler streams it.
        for name in current_app.config["WTF_CSRF_HEADERS"]:
            if value := request.headers.get(name):
                return str(value)
        if request.mimetype in _FORMS and request.blueprint != API_BLUEPRINT:
            return request.form.get(current_app.config["WTF_CSRF_FIELD_NAME"])
        return None

    def _error_response(self, reason: str) -> NoReturn:
        raise Forbidden(f"{reason} Send the session's CSRF token in the header X-CSRFToken.", code="csrf")


class Auth:
    """One per app. Its methods work inside a request."""

    def __init__(self, access: AccessService, rates: RateLimits) -> None:
        self._access = access
        self._rates = rates
        self._csrf = _Csrf()
        self._login = flask_login.LoginManager()
        self._login.session_protection = None  # the session lives on the server and ends there
        self._login.user_loader(self._load)

    def init_app(self, app: Flask, settings: Settings, key: bytes) -> None:
        """``key`` signs the cookie; it has to be the same in all processes."""
        secure = settings.server.secure_cookies
        app.config.update(
            SECRET_KEY=key,
            SESSION_COOKIE_NAME="__Host-cloche_session" if secure else "cloche_session",
            SESSION_COOKIE_HTTPONLY=True,
            SESSION_COOKIE_SAMESITE="Strict",
            SESSION_COOKIE_SECURE=secure,
            SESSION_COOKIE_PATH="/",
            WTF_CSRF_CHECK_DEFAULT=False,  # guarded below, after the origin check
            WTF_CSRF_TIME_LIMIT=None,  # as long as the session
            WTF_CSRF_SSL_STRICT=False,  # Origin and Sec-Fetch-Site are checked below, for plain HTTP too
        )
        self._login.init_app(app)
        self._csrf.init_app(app)
        scoping.register(app)
        app.before_request(self._guard)

    def actor(self, *, basic: bool = False) -> Actor | None:
        """The request's actor; None when it carries no credential or an ended session. ``basic`` accepts user name and password.

        Raises:
            BadRequest: two credentials.
            NotFound: the credential is not good for the tenant that the request names.
            RateLimited: the address, the user or the token has asked too often.
            Unauthenticated: a credential that proves nothing.
        """
        new = "actor" not in g
        if new:
            try:
                g.actor = self._identify(basic)
            except Unauthenticated:
                throttle.charge(self._rates)
                raise
            except TenantUnknown as error:  # known is who asks, though not where
                throttle.charge(self._rates, error.user_id, error.token_id)
                raise
        known: Actor | None = g.actor
        if known is not None:
            scope.act_in(known.tenant_id)
        if new:  # a refusal is the tenant's too, and so is what is recorded of it
            throttle.charge(self._rates, *((known.user_id, known.token_id) if known is not None else ()))
        return known

    def require(self, permission: Permission | None = None, *, basic: bool = False) -> Actor:
        """The actor, who holds ``permission`` (None: any signed-in one).

        Raises:
            Unauthenticated: nobody is signed in.
            Forbidden: the permission is missing.
        """
        actor = self.actor(basic=basic)
        if actor is None:
            raise Unauthenticated("Sign in, or send a token: Authorization: Bearer cloche_pat_…")
        if permission is not None and not actor.may(permission):
            named = permission in NAMED_ONLY and not actor.named
            raise Forbidden(
                f"This needs the permission {permission}"
                + (", which a token has only where its scopes name it." if named else ".")
            )
        return actor

    def sign_in(self, username: str, password: str) -> Actor:
        """Open a session and set its cookie.

        Raises:
            Unauthenticated, RateLimited, Unavailable: see ``AccessService.sign_in``.
        """
        before = self.actor() if _has_cookie() else None
        with _held_up():
            signed = self._access.sign_in(username, password, origin(), agent=_agent(), before=before)
        return self.renew(signed)

    def change_password(self, current: str, new: str, *, revoke_tokens: bool) -> Actor:
        """Change the actor's password, and set the cookie of the session that follows theirs, where they have one.

        Raises:
            Forbidden, Unauthenticated, Conflict, Invalid, RateLimited, Unavailable: see ``AccessService.change_password``.
        """
        actor = self.require()
        signed = self._access.change_password(
            actor, current, new, origin(), revoke_tokens=revoke_tokens, agent=_agent()
        )
        return actor if signed is None else self.renew(signed)

    @staticmethod
    def renew(signed: SignedIn) -> Actor:
        """Let the browser go on with another session: what it, or somebody who gave it its cookie, had before is worth nothing after it."""
        session.clear()
        g.pop(current_app.config["WTF_CSRF_FIELD_NAME"], None)
        flask_login.login_user(_Signed(signed.secret, signed.actor))
        g.actor = signed.actor
        scope.act_in(signed.actor.tenant_id)
        return signed.actor

    def sign_out(self) -> None:
        """End the session on the server and drop the cookie."""
        actor = self.actor()
        if actor is not None and actor.session_id is not None:
            self._access.sign_out(actor)
        flask_login.logout_user()
        session.clear()
        g.actor = None
        scope.act_for_nobody()

    @staticmethod
    def csrf_token() -> str:
        """The token that unsafe requests of this session have to carry."""
        return str(generate_csrf())

    def _load(self, secret: str) -> _Signed | None:
        actor = self._access.resume(secret, origin())
        return _Signed(secret, actor) if actor is not None else None

    def _identify(self, basic: bool) -> Actor | None:
        header = request.headers.get("Authorization")
        if header is None:
            if not _has_cookie():
                return None
            user: Any = flask_login.current_user
            return user.actor if user.is_authenticated else None
        if _has_cookie():
            _refuse_two()
        scheme, _, value = header.partition(" ")
        if scheme.casefold() == "bearer":
            return self._access.authenticate_token(value.strip(), origin())
        if scheme.casefold() == "basic":
            username, password = _basic(value)
            if password.startswith(TOKEN_PREFIX):  # for programs that know nothing else; the user name is not looked at
                return self._access.authenticate_token(password, origin())
            if basic:
                with _held_up():
                    return self._access.check_credentials(username, password, origin())
        accepted = "a token, or user name and password" if basic else "a token, as Bearer or as the password of Basic"
        raise Unauthenticated(f"This address takes {accepted}.", code="unsupported-scheme")

    def _guard(self) -> None:
        """Refuse what another site may have made a browser send."""
        authorized = request.headers.get("Authorization") is not None
        if authorized and _has_cookie():
            _refuse_two()
        if request.endpoint is None or request.method in SAFE_METHODS:
            return
        if authorized:
            if not request.headers["Authorization"][:7].casefold().startswith("bearer"):
                _check_same_site()  # browsers keep what was typed, and send it for every page
            return
        if request.blueprint != API_BLUEPRINT:
            _check_same_site()
            self._csrf.protect()
        elif _has_cookie():
            _check_same_site()
            if self.actor() is not None:
                self._csrf.protect()
        elif "Origin" in request.headers or "Sec-Fetch-Site" in request.headers:
            _check_same_site()  # a sign-in from another site's page


def origin() -> Origin:
    """The current request's address, its id, and the tenant that it asks for."""
    asked = request.headers.get(TENANT_HEADER)
    return Origin(request.remote_addr, g.get("request_id"), asked and asked[:_TENANT_TEXT])


@contextmanager
def _held_up() -> Iterator[None]:
    """Who has to wait because too much failed is in the record too, by the count of their address."""
    try:
        yield
    except RateLimited:
        current_app.extensions["cloche_denials"].anonymous()
        raise


def _agent() -> str | None:
    return request.headers.get("User-Agent")


def _has_cookie() -> bool:
    return current_app.config["SESSION_COOKIE_NAME"] in request.cookies


def _refuse_two() -> NoReturn:
    raise BadRequest("Send a session cookie or an Authorization header, not both.", code="two-credentials")


def _check_same_site() -> None:
    site = request.headers.get("Sec-Fetch-Site", "none")
    given = request.headers.get("Origin")
    # The scheme is left out: TLS may end in front of us.
    elsewhere = given is not None and given.partition("://")[2] != request.host
    if elsewhere or site not in ("same-origin", "none"):
        raise Forbidden("The request comes from another site.", code="cross-site")


def _basic(value: str) -> tuple[str, str]:
    try:
        username, found, password = base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")
    except ValueError:  # no base64, no UTF-8, or not even ASCII
        found = ""
    if not found:
        raise Unauthenticated("The Basic credentials are malformed.", code="basic-malformed")
    return username, password
