// std::format for standard libraries that lack it, as far as mlx-c uses it:
// plain `{}` fields, filled in order with anything that has operator<<.
#pragma once

#include <version>

#ifdef __cpp_lib_format
#include <format>
#else
#include <sstream>
#include <string>
#include <string_view>

namespace std {

template <typename... Args>
string format(string_view pattern, const Args&... args) {
  ostringstream text;
  auto field = [&](const auto& value) {
    auto at = pattern.find("{}");
    text << pattern.substr(0, at) << value;
    pattern.remove_prefix(at == string_view::npos ? pattern.size() : at + 2);
  };
  (field(args), ...);
  text << pattern;
  return text.str();
}

} // namespace std
#endif
