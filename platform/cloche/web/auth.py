"""Who is asking: a bearer token, a session cookie, or (where a route says so) HTTP Basic. Never two at once.

A page asks :meth:`Auth.actor` or :meth:`Auth.require`; a sign-in form calls :meth:`Auth.sign_in`. Unsafe requests that come with a cookie
have passed the origin and CSRF checks before any view runs.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, NoReturn

import flask_login
from flask import Flask, current_app, g, request, session
from flask_wtf.csrf import CSRFProtect, generate_csrf

from cloche.config import Settings
from cloche.domain.permissions import Actor, Permission
from cloche.errors import BadRequest, Forbidden, Unauthenticated
from cloche.services.access import AccessService
from cloche.services.actors import Origin

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
API_BLUEPRINT = "api"
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

    def __init__(self, access: AccessService) -> None:
        self._access = access
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
        app.before_request(self._guard)

    def actor(self, *, basic: bool = False) -> Actor | None:
        """The request's actor; None when it carries no credential or an ended session. ``basic`` accepts user name and password.

        Raises:
            BadRequest: two credentials.
            Unauthenticated: a credential that proves nothing.
        """
        if "actor" not in g:
            g.actor = self._identify(basic)
        found: Actor | None = g.actor
        return found

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
            raise Forbidden(f"This needs the permission {permission}.")
        return actor

    def sign_in(self, username: str, password: str) -> Actor:
        """Open a session and set its cookie.

        Raises:
            Unauthenticated, RateLimited: see ``AccessService.sign_in``.
        """
        signed = self._access.sign_in(username, password, origin())
        session.clear()  # a session known before the sign-in is worth nothing after it
        g.pop(current_app.config["WTF_CSRF_FIELD_NAME"], None)
        flask_login.login_user(_Signed(signed.secret, signed.actor))
        g.actor = signed.actor
        return signed.actor

    def sign_out(self) -> None:
        """End the session on the server and drop the cookie."""
        actor = self.actor()
        if actor is not None and actor.session_id is not None:
            self._access.sign_out(actor)
        flask_login.logout_user()
        session.clear()
        g.actor = None

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
        if scheme.casefold() == "basic" and basic:
            return self._access.check_credentials(*_basic(value), origin())
        accepted = "a bearer token, or user name and password" if basic else "a bearer token"
        raise Unauthenticated(f"This address takes {accepted}.", code="unsupported-scheme")

    def _guard(self) -> None:
        """Refuse what another site may have made a browser send."""
        authorized = request.headers.get("Authorization") is not None
        if authorized and _has_cookie():
            _refuse_two()
        if authorized or request.endpoint is None or request.method in SAFE_METHODS:
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
    """The current request's address and id."""
    return Origin(request.remote_addr, g.get("request_id"))


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
    except (binascii.Error, UnicodeDecodeError):
        found = ""
    if not found:
        raise Unauthenticated("The Basic credentials are malformed.", code="basic-malformed")
    return username, password
