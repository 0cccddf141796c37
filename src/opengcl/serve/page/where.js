// Filters as the server's filter language: `price` >= 10 and `brand` in ("x", "y") and `stock` = true

/** The condition of a state's filters, or null where there is none. */
export function where(filters) {
  const parts = Object.entries(filters).flatMap(([name, value]) => condition(name, value));
  return parts.length ? parts.join(" and ") : null;
}

function condition(name, value) {
  const field = `\`${name}\``; // in backquotes any name is one word
  if (Array.isArray(value)) return value.length ? [`${field} in (${value.map((one) => JSON.stringify(one)).join(", ")})`] : [];
  if (typeof value === "boolean") return [`${field} = ${value}`];
  const range = [];
  if (value.low !== null) range.push(`${field} >= ${value.low}`);
  if (value.high !== null) range.push(`${field} <= ${value.high}`);
  return range;
}
