# The version is the Python package's; before 1.0, a minor release may change anything.
file(STRINGS "${CMAKE_CURRENT_LIST_DIR}/../include/resnet_deploy/version.hpp" _resnet_deploy_line REGEX "version = ")
string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" PACKAGE_VERSION "${_resnet_deploy_line}")
string(REGEX MATCH "^[0-9]+\\.[0-9]+" _resnet_deploy_minor "${PACKAGE_VERSION}")

if(PACKAGE_FIND_VERSION_MAJOR STREQUAL "" OR NOT PACKAGE_FIND_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
elseif("${PACKAGE_FIND_VERSION_MAJOR}.${PACKAGE_FIND_VERSION_MINOR}" VERSION_EQUAL _resnet_deploy_minor
       AND PACKAGE_VERSION VERSION_GREATER_EQUAL PACKAGE_FIND_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
else()
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
endif()
if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()
