"""Models on a local page and behind an endpoint in OpenAI's form (docs/serve.md).

It needs Starlette, uvicorn and Jinja2 (the extra `serve`), which no other code imports.
"""
