// The routes, as openapi.json describes them. Text only: nothing of it is taken for HTML.

const TOKEN = "polypseg-token"; // where api.js keeps it
const METHODS = ["get", "post", "put", "patch", "delete"];
const $ = (id) => document.getElementById(id);

function element(name, ...content) {
  const made = document.createElement(name);
  made.append(...content);
  return made;
}

// The schema that a reference names.
const resolved = (schema, all) => (schema?.$ref ? all.components.schemas[schema.$ref.split("/").at(-1)] : schema) ?? {};

function kindOf(schema, all) {
  const one = resolved(schema, all);
  if (one.anyOf) return one.anyOf.filter(({ type }) => type !== "null").map((part) => kindOf(part, all)).join(" or ");
  if (one.type === "array") return `list of ${kindOf(one.items, all)}`;
  if (one.enum) return one.enum.join(", ");
  const limits = [
    ["minimum", "at least"], ["exclusiveMinimum", "above"], ["maximum", "at most"], ["exclusiveMaximum", "below"],
  ].filter(([name]) => one[name] !== undefined).map(([name, word]) => `${word} ${one[name]}`);
  const what = one.format === "binary" || one.contentMediaType ? "file" : (one.title && one.type === "object" ? one.title : one.type);
  return [what ?? "anything", ...limits].join(", ");
}

function table(heads, rows) {
  const head = element("tr", ...heads.map((text) => Object.assign(element("th", text), { scope: "col" })));
  const body = rows.map((row) => element("tr", ...row.map((cell) => element("td", cell ?? ""))));
  const scroll = element("div", element("table", element("thead", head), element("tbody", ...body)));
  scroll.className = "scroll";
  scroll.tabIndex = 0;
  return scroll;
}

const fieldsOf = (schema, all) =>
  Object.entries(resolved(schema, all).properties ?? {}).map(([name, field]) => [
    element("code", name), kindOf(field, all), field.description ?? resolved(field, all).description ?? "",
  ]);

function parts({ parameters = [], requestBody, responses }, all) {
  const made = [];
  if (parameters.length) {
    const rows = parameters.map((one) => [element("code", one.name), `${one.in}; ${kindOf(one.schema, all)}`, one.description]);
    made.push(element("h3", "Parameters"), table(["name", "where", "what"], rows));
  }
  for (const [type, { schema }] of Object.entries(requestBody?.content ?? {})) {
    const rows = fieldsOf(schema, all);
    made.push(element("h3", "Body: ", element("code", type)), rows.length ? table(["field", "kind", "what"], rows) : "");
  }
  const rows = Object.entries(responses).map(([status, { description, content = {} }]) => [
    status, Object.keys(content).join(", "), description,
  ]);
  made.push(element("h3", "Responses"), table(["status", "type", "what"], rows));
  const [good] = Object.entries(responses).filter(([status]) => status.startsWith("2"));
  const json = good?.[1].content?.["application/json"]?.schema;
  const fields = json ? fieldsOf(json.type === "array" ? json.items : json, all) : [];
  if (fields.length) made.push(element("h3", "JSON"), table(["key", "kind", "what"], fields));
  return made;
}

function show(all) {
  $("about").textContent = `${all.info.description} Version ${all.info.version}.`;
  const groups = new Map();
  for (const [path, methods] of Object.entries(all.paths)) {
    for (const method of METHODS.filter((name) => methods[name])) {
      const route = methods[method];
      const body = element("div", element("p", route.description ?? route.summary ?? ""), ...parts(route, all));
      const head = element("summary", element("b", method.toUpperCase()), element("code", path));
      const tag = route.tags?.[0] ?? "service";
      groups.set(tag, [...(groups.get(tag) ?? []), element("details", head, body)]);
    }
  }
  $("routes").replaceChildren(
    ...[...groups].map(([tag, routes]) => element("section", element("h2", tag[0].toUpperCase() + tag.slice(1)), ...routes)),
  );
}

async function load() {
  const token = sessionStorage.getItem(TOKEN);
  const response = await fetch("openapi.json", { headers: token ? { Authorization: `Bearer ${token}` } : {} });
  $("access").hidden = response.status !== 401;
  if (response.ok) return show(await response.json());
  $("about").textContent = response.status === 401 ? "This service needs its token." : `The service responded ${response.status}.`;
}

$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, $("token").value.trim());
  load();
});
load().catch(() => ($("about").textContent = "The service does not respond; is it still running?"));
