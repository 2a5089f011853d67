// swift-tools-version:5.9
import PackageDescription

// clusir.xcframework is built as README.md says; its headers hold clusir.h and, from ios/module.modulemap, the module CClusir.
let package = Package(
    name: "Clusir",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "Clusir", targets: ["Clusir"])],
    targets: [
        .binaryTarget(name: "CClusir", path: "clusir.xcframework"),
        .target(name: "Clusir", dependencies: ["CClusir"], linkerSettings: [.linkedLibrary("c++")]),
    ]
)
