// Starts Swagger UI without inline script. A signed-in browser sends its session's CSRF token with each try.
(() => {
  "use strict";
  const meta = document.querySelector("meta[name=csrf-token]");
  SwaggerUIBundle({
    url: "/openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    docExpansion: "list",
    validatorUrl: null,
    requestInterceptor: (request) => {
      if (meta && !["GET", "HEAD"].includes((request.method || "GET").toUpperCase())) {
        request.headers["X-CSRFToken"] = meta.content;
      }
      return request;
    },
  });
})();
