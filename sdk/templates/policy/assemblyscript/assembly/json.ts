// Just enough JSON: what the host writes is valid, so this only finds its way in it.

const QUOTE: u8 = 0x22;
const BACKSLASH: u8 = 0x5c;

/** A JSON value: where its text starts and ends in memory. Only what is looked at is taken apart. */
export class Value {
  constructor(
    readonly start: usize,
    readonly end: usize,
  ) {}

  /** The value as it stands in the document; strings with their quotes. Empty for what is not there. */
  get text(): string {
    return String.UTF8.decodeUnsafe(this.start, this.end - this.start);
  }

  /** The number, or NaN. */
  get number(): f64 {
    return parseFloat(this.text);
  }

  /** The entries of an array; the keys and the values of an object, in turn. */
  items(): Value[] {
    const found = new Array<Value>();
    for (let at = next(this.start + 1, this.end); at < this.end; ) {
      const end = skip(at, this.end);
      found.push(new Value(at, end));
      at = next(end, this.end);
    }
    return found;
  }

  /** The value of a key of an object. */
  get(key: string): Value {
    const wanted = `"${key}"`;
    for (let at = next(this.start + 1, this.end); at < this.end; ) {
      const behind = skip(at, this.end);
      const value = next(behind, this.end);
      const end = skip(value, this.end);
      if (new Value(at, behind).text == wanted) return new Value(value, end);
      at = next(end, this.end);
    }
    return new Value(this.end, this.end);
  }
}

/** The next place where a value starts; `end` if there is none. */
function next(at: usize, end: usize): usize {
  while (at < end) {
    const c = load<u8>(at);
    // Space, comma, colon, closing brackets.
    if (c > 0x20 && c != 0x2c && c != 0x3a && c != 0x5d && c != 0x7d) return at;
    at++;
  }
  return end;
}

/** From the start of a value to behind it. */
function skip(at: usize, end: usize): usize {
  let depth = 0;
  while (at < end) {
    const c = load<u8>(at++);
    if (c == QUOTE) {
      while (at < end && load<u8>(at) != QUOTE) at += load<u8>(at) == BACKSLASH ? 2 : 1;
      at++;
    } else if (c == 0x5b || c == 0x7b /* [ { */) {
      depth++;
    } else if (c == 0x5d || c == 0x7d /* ] } */) {
      depth--;
    } else if (depth == 0) {
      // A number, true, false or null.
      while (at < end && load<u8>(at) > 0x20) {
        const d = load<u8>(at);
        if (d == 0x2c || d == 0x5d || d == 0x7d) break;
        at++;
      }
    }
    if (depth == 0) break;
  }
  return at < end ? at : end;
}
