// Starts Swagger UI without inline script. A signed-in browser sends its session CSRF token with each try.
(() => {
  "use strict";
  let csrf = null;
  const start = () =>
    SwaggerUIBundle({
      url: "/openapi.json",
      dom_id: "#swagger-ui",
      deepLinking: true,
      docExpansion: "list",
      validatorUrl: null,
      requestInterceptor: (request) => {
        if (csrf && !["GET", "HEAD"].includes((request.method || "GET").toUpperCase())) {
          request.headers["X-CSRFToken"] = csrf;
        }
        return request;
      },
    });
  fetch("/api/v1/me", { credentials: "same-origin" })
    .then((answer) => (answer.ok ? answer.json() : null))
    .then((me) => { csrf = me && me.csrf_token; })
    .catch(() => {})
    .then(start);
})();
