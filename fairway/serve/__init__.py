"""Models on a local page and behind an endpoint in OpenAI's form (docs/serve.md).

Needs Starlette, uvicorn and Jinja2 (the extra `serve`), which nothing else imports.
"""
