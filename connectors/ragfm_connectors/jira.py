"""Issues of Jira with their comments, in the cloud and in a data centre, and their attachments."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from ragfm.core.errors import ConfigError, ConnectorError
from ragfm.core.identities import Identities
from ragfm.core.types import Blob, Ref, Scalar
from ragfm_connectors.patterns import PathFilter
from ragfm_connectors.records import as_path, html_page
from ragfm_connectors.rest_api import AccessRules, ApiError, RestApi, known_fields

_API = "rest/api/2"  # the third version gives text as a tree, this one as HTML
_PAGE_SIZE = 100
_METADATA = (
    *("issuetype", "status", "priority", "resolution", "project", "components", "fixVersions", "labels"),
    *("reporter", "assignee", "created", "updated"),
)


class _Issue(NamedTuple):
    """An issue of the listing. `level` is the id of its security level, empty without one."""

    key: str
    updated: str
    project: str
    level: str
    files: tuple[tuple[str, str, int], ...]  # path, time of creation and size


class JiraConnector:
    """The issues of `projects` (their keys), or that the query `jql` selects, or those that both select.

    The path of an issue is its key, and that of an attachment, with `attachments`, `<key>/<id>/<file name>`. The
    revision is the time of its last change. A listing asks once for 100 issues; only new and changed ones are fetched.
    The text has type, status and the other fields that are metadata, `fields` (ids such as `customfield_10010`), the
    description and the comments, without those that only some may see.

    User and API token of the location, `https://ann%40example.org:${TOKEN}@example.atlassian.net`, or `authorization`,
    the value of that header such as `Bearer ${TOKEN}`, are sent only to the location's own site. `include` and
    `exclude` are patterns for paths. With `identities`, the path of a mapping file (`ragfm.core.identities`), an issue
    is visible to those who may browse its project and are members of its security level.
    """

    fetch_anywhere = True
    parallel_fetches = 4

    def __init__(
        self,
        location: str,
        *,
        projects: Sequence[str] = (),
        jql: str = "",
        fields: Sequence[str] = (),
        attachments: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        retries: int = 3,
        authorization: str | None = None,
        identities: str | None = None,
        max_bytes: int = 100 * 2**20,
    ) -> None:
        """Raises ConfigError for a secret that is not an environment variable, and without projects and query."""
        if not projects and not jql:
            raise ConfigError(
                "No issues are selected.", "Name projects with the option `projects`, or a query with `jql`."
            )
        self._api = RestApi(location, authorization, retries)
        self.root = self._api.root
        """The URL of the location, without user."""
        parts = [f"project in ({','.join(map(json.dumps, projects))})"] if projects else []
        parts += [f"({jql})"] if jql else []
        self._jql = f"{' AND '.join(parts)} ORDER BY created ASC, key ASC"
        self._fields, self._attachments = tuple(fields), attachments
        self._paths, self._max_bytes = PathFilter(include, exclude), max_bytes
        self.identities = Identities(identities) if identities is not None else None
        """The groups that the site's users and groups stand for; None if its permissions do not matter."""

    def refs(self) -> Iterator[Ref]:
        """All issues, and attachments. Raises SourceError if they cannot all be listed."""
        fields = ["updated", "project", "security", *["attachment"] * self._attachments]
        query = {"jql": self._jql, "fields": ",".join(fields), "maxResults": _PAGE_SIZE}
        with known_fields():
            is_cloud = self._api.get(f"{_API}/serverInfo").get("deploymentType") == "Cloud"
        path = f"{_API}/search{'/jql' * is_cloud}?{urlencode(query)}"
        issues = {issue.key: issue for issue in self._api.list_all(path, self._read, partial(_next, path))}
        access = AccessRules(self.identities) if self.identities is not None else None
        for issue in issues.values():
            allow, error = access.groups(self._rules(issue)) if access is not None else (None, None)
            if error and issue.level:  # it is restricted, maybe since the last listing
                allow = ()
            for path, revision, size in ((issue.key, issue.updated, 0), *issue.files):
                if not self._paths.includes(path):
                    continue
                if size > self._max_bytes:
                    yield Ref(path, skip=f"{size:,} bytes; the limit is {self._max_bytes:,} (`files.max_mb`)")
                else:
                    yield Ref(path, revision, error=error, allow=allow)

    def fetch(self, ref: Ref) -> Blob:
        """An issue or attachment, with metadata. Raises ConnectorError if it has changed since it was listed."""
        key, *file = ref.path.split("/")
        with known_fields():
            if file:
                found = self._api.get(f"{_API}/attachment/{file[0]}")
                data = self._api.download(found["content"], found["size"])
                return Blob(data, found.get("mimeType"), {"title": found["filename"], "modified": found["created"]})
            path = f"{_API}/issue/{key}/comment?expand=renderedBody&maxResults={_PAGE_SIZE}"
            comments = self._api.list_all(
                path, lambda page: [(it["id"], it) for it in page["comments"]], partial(_next, path)
            )
            fields = ",".join(("summary", "description", *_METADATA, *self._fields))
            issue = self._api.get(f"{_API}/issue/{key}?fields={quote(fields)}&expand=renderedFields,names")
            # The comments were read before: one that is new, or whose issue was closed meanwhile, changes the time.
            if (issue["key"], self._revision(issue)) != (ref.path, ref.revision):
                raise ConnectorError(f"{ref.path} has changed since it was listed.", "The next ingest reads it again.")
            return self._blob(issue, [comment for _, comment in comments])

    def _blob(self, issue: Any, comments: Sequence[Any]) -> Blob:
        values, rendered = issue["fields"], issue.get("renderedFields") or {}
        title = f"{issue['key']}: {values['summary']}"
        names = issue.get("names", {})
        found = {field: _text(values.get(field)) for field in _METADATA}
        lines = {field: html.escape(text) for field, text in found.items()}
        lines |= {field: rendered.get(field) or html.escape(_text(values.get(field))) for field in self._fields}
        body = "".join(
            f"<li>{html.escape(names.get(field, field))}: {text}</li>" for field, text in lines.items() if text
        )
        body = f"<ul>{body}</ul>\n{rendered.get('description') or ''}\n"
        for comment in comments:
            if "visibility" not in comment:
                author = _text(comment.get("author"))
                heading = html.escape(f"Comment by {author}, {comment['created'][:10]}")
                body += f"<h2>{heading}</h2>\n{comment['renderedBody']}\n"
        metadata: dict[str, Scalar] = {key: value for key, value in found.items() if value}
        metadata |= {"title": title, "url": f"{self.root}/browse/{issue['key']}"}
        return Blob(html_page(title, body), "text/html", metadata)

    def _read(self, page: Any) -> Iterator[_Issue]:
        for issue in page["issues"]:
            values, key = issue["fields"], as_path(issue["key"])
            files = tuple(
                (f"{key}/{as_path(str(it['id']))}/{as_path(it['filename'])}", str(it["created"]), int(it["size"]))
                for it in values.get("attachment") or ()
            )
            level = str((values.get("security") or {}).get("id", ""))
            yield _Issue(key, self._revision(issue), values["project"]["key"], level, files)

    def _revision(self, issue: Any) -> str:
        return " ".join((issue["fields"]["updated"], *self._fields))

    # --- Permissions ---------------------------------------------------------------------------------------------

    def _rules(self, issue: _Issue) -> Iterator[Any]:
        yield issue.project, partial(self._project_readers, issue.project)
        if issue.level:
            yield (issue.project, issue.level), partial(self._level_readers, issue.project, issue.level)

    def _project_readers(self, project: str) -> list[str]:
        path = f"{_API}/project/{quote(project)}/permissionscheme?expand=permissions,user,group,projectRole"
        rules = self._api.get(path)["permissions"]
        holders = [rule["holder"] for rule in rules if rule["permission"] == "BROWSE_PROJECTS"]
        return [who for holder in holders for who in self._identities_of(holder, project)]

    def _level_readers(self, project: str, level: str) -> list[str]:
        path = f"{_API}/issuesecurityschemes/level/member?levelId={quote(level)}&expand=user,group,projectRole"
        try:
            members = self._api.list_all(
                path, lambda page: [(it["id"], it["holder"]) for it in page["values"]], partial(_next, path)
            )
        except ApiError as error:
            reason = "the site does not tell it" if error.status == 404 else error.message  # a data centre
            raise ConnectorError(f"who belongs to its security level: {reason}") from None
        return [who for _, holder in members for who in self._identities_of(holder, project)]

    def _identities_of(self, holder: Any, project: str) -> list[str]:
        """The identities that a permission is for; none for those that depend on the issue, such as its reporter."""
        kind, parameter = holder["type"], holder.get("parameter") or ""
        if kind == "user":
            who = holder.get("user", {})
            return [f"user:{who.get('accountId') or who.get('name') or parameter}"]
        if kind == "projectRole":
            actors = self._api.get(f"{_API}/project/{quote(project)}/role/{quote(parameter)}")["actors"]
            groups = [actor["name"] for actor in actors if actor["type"] == "atlassian-group-role-actor"]
            users = [actor for actor in actors if actor["type"] == "atlassian-user-role-actor"]
            names = [actor.get("actorUser", {}).get("accountId") or actor["name"] for actor in users]
            return [*(f"group:{name}" for name in groups), *(f"user:{name}" for name in names)]
        if kind == "anyone":
            return ["anyone"]
        return [f"{kind}:{parameter}"] if kind in ("group", "applicationRole") else []


def _text(value: Any) -> str:
    """The value of a field: a name, a person, a text, or a list of these."""
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return next((str(value[key]) for key in ("displayName", "name", "value", "key") if value.get(key)), "")
    return "" if value is None else str(value)


def _next(path: str, page: Any) -> str | None:
    """The path of the next answer, by its token in the cloud, else by a number."""
    if "nextPageToken" in page or "startAt" not in page:
        token = page.get("nextPageToken")
        return f"{path}&nextPageToken={quote(token, safe='')}" if token else None
    count = len(page.get("issues") or page.get("comments") or page.get("values") or ())
    end = page["startAt"] + count
    return f"{path}&startAt={end}" if count and end < page["total"] else None
